import itertools
import json
import shutil
from types import SimpleNamespace

import cv2
import pytest
import torch
from test_tools import fails
from tiny import load_tool

from adn_mmdet.cost.latency import LatencyRow
from adn_mmdet.inference import budget


@pytest.fixture(scope='module')
def demo():
    return load_tool('demo').main


@pytest.fixture
def net(tiny_cfg, checkpoint, tmp_path, monkeypatch):
    """Config and checkpoint; calibrations are kept for this test, and say that a skipped stage saves 5 of 40 ms."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def measure(model, points, inputs, **settings):
        return [LatencyRow(str(point.skip), 40.0 - 5 * sum(point.skip), *[1.0] * 9) for point in points]

    monkeypatch.setattr(budget, 'measure_latency', measure)
    return [tiny_cfg.filename, str(checkpoint)]


@pytest.fixture
def folder(shapes, tmp_path):
    (tmp_path / 'images').mkdir()
    for image in sorted((shapes / 'val').iterdir())[:2]:
        shutil.copy(image, tmp_path / 'images')
    return tmp_path / 'images'


def test_a_folder_at_a_code_and_an_image_within_a_budget(demo, net, folder, tmp_path, capsys):
    argv = [*net, '--out', str(tmp_path / 'out'), '--device', 'cpu', '--score-thr', '0.9']
    capsys.readouterr()
    assert demo([str(folder), *argv, '--skip', 'ttff']) == 0
    assert f'{tmp_path}/out/vis: 2 images, TTFF, median ' in capsys.readouterr().out
    pictures = sorted((tmp_path / 'out' / 'vis').iterdir())
    assert [path.name for path in pictures] == sorted(path.name for path in folder.iterdir())
    assert all(cv2.imread(str(path)).shape == (64, 64, 3) for path in pictures)
    shutil.rmtree(tmp_path / 'out')
    assert demo([str(next(folder.iterdir())), *argv, '--budget-ms', '26']) == 0
    assert '1 images, TTFT, median ' in capsys.readouterr().out  # skips 4 blocks; other three stages have more
    assert demo([str(next(folder.iterdir())), *argv]) == 0
    assert '1 images, FFFF, median ' in capsys.readouterr().out
    assert demo([str(next(folder.iterdir())), *argv, '--point', 'TTFF@96/5']) == 0
    assert '1 images, TTFF@96/5, median ' in capsys.readouterr().out
    for wrong, message in (
        ('TTFF@9', 'size should be the short side of the input in pixels'),
        ('TTFF/0', 'proposals should be the number of region proposals'),
        ('FFF@640', "'FFF' is not a skip code"),
        ('640', "'640' is not a skip code"),
    ):
        fails(demo, [str(folder), *argv, '--point', wrong], capsys, message)
    fails(demo, [str(folder), *argv, '--point', 'TTFF', '--skip', 'TTFF'], capsys, 'were both given: give one of them')


def test_a_video_is_drawn_frame_by_frame(demo, net, video, tmp_path, capsys):
    argv = [video, *net, '--out', str(tmp_path / 'out'), '--device', 'cpu', '--score-thr', '1', '--skip', 'TTTT']
    assert demo(argv) == 0
    assert f'{tmp_path}/out/vis: 4 images, TTTT, median ' in capsys.readouterr().out
    assert [path.name for path in (tmp_path / 'out' / 'vis').iterdir()] == ['drive.mp4']
    shutil.move(tmp_path / 'out' / 'vis' / 'drive.mp4', tmp_path / 'mine.mp4')
    (tmp_path / 'out' / 'vis' / 'drive.mp4').write_bytes(b'mine')
    fails(demo, argv, capsys, 'drive.mp4 was not written by an inferencer: move it, or give another output folder')
    assert (tmp_path / 'out' / 'vis' / 'drive.mp4').read_bytes() == b'mine'


def test_a_budget_is_held(demo, net, video, tmp_path, capsys, monkeypatch):
    log, argv = tmp_path / 'ran.csv', [video, *net, '--device', 'cpu', '--score-thr', '1']
    held = [*argv, '--out', str(tmp_path / 'out'), '--hold', '--log', str(log), '--format', 'coco']
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # a frame takes a second
        patch.setattr('adn_mmdet.inference.held.time', clock)
        assert demo([*held, '--budget-fps', '0.5']) == 0
    expected = '4 images, FFFF 100%; median 1000.0 ms, 95 % within 1000.0 ms, 100% within 2000 ms'
    assert f'{tmp_path}/out/vis: {expected}' in capsys.readouterr().out
    annotated = json.loads((tmp_path / 'out' / 'annotations.json').read_text())['images']
    assert [image['point'] for image in annotated] == ['FFFF'] * 4
    assert log.read_text().splitlines() == ['frame,point,ms', *(f'{frame},FFFF,1000.000' for frame in range(4))]
    assert [path.name for path in (tmp_path / 'out' / 'vis').iterdir()] == ['drive.mp4']
    for flags, message in (
        (['--hold'], 'hold=True holds a budget: give budget_ms=MILLISECONDS'),
        (['--budget-ms', '40', '--log', 'a.csv'], 'give hold=True as well'),
        (['--budget-ms', '40', '--budget-fps', '25'], '--budget-ms 40 and --budget-fps 25 were both given'),
        (['--budget-fps', '0'], '--budget-fps should be a positive number of frames a second, but got 0'),
        (['--budget-fps', 'nan'], 'frames a second, but got nan'),
    ):
        fails(demo, [*argv, '--out', str(tmp_path / 'other'), *flags], capsys, message)
    fails(demo, ['97', *argv[1:]], capsys, 'webcam 97 cannot be opened')


def test_depths_are_timed_on_a_folder(demo, net, folder, tmp_path, capsys):
    argv = [str(folder), *net, '--out', str(tmp_path / 'out'), '--device', 'cpu', '--score-thr', '1']
    assert demo([*argv, '--budget-ms', '26', '--images', str(folder)]) == 0
    assert f'with {folder}: once, into' in capsys.readouterr().out
    fails(demo, [*argv, '--budget-ms', '26', '--images', 'none'], capsys, 'none should be a folder of images')
    for number in ('nan', 'inf'):
        fails(demo, [*argv, '--budget-ms', number], capsys, 'should be a positive number of milliseconds')
        fails(demo, [*argv, '--score-thr', number], capsys, '--score-thr should be from 0 to 1')


def test_what_is_wrong_is_one_line_and_nothing_is_written(demo, net, folder, tmp_path, capsys, elsewhere):
    image = str(next(folder.iterdir()))
    config, checkpoint = net
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8 no more than a start')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'page.pth').write_text('<html>not found</html>')
    (tmp_path / 'pickle.pth').write_bytes(b'\x80\x04cposix\nsystem\n(S"touch hacked"\ntR.')
    weights = torch.load(checkpoint)['state_dict']
    torch.save({**weights, 'roi_head.bbox_head.fc_cls.bias': torch.zeros(7)}, tmp_path / 'classes.pth')
    for argv, message in (
        (['none.jpg', *net], 'there is no none.jpg'),
        ([str(tmp_path / 'broken.jpg'), *net], 'broken.jpg cannot be read as an image'),
        ([str(tmp_path / 'empty'), *net], 'there is no image in'),
        ([config, *net], 'should be an image'),
        (['none.mp4', *net], 'there is no video none.mp4'),
        ([image, 'none.py', checkpoint], 'there is no config none.py'),
        ([image, config, 'none.pth'], 'there is no checkpoint none.pth'),
        ([image, config, str(tmp_path / 'page.pth')], 'download it again'),
        ([image, config, str(tmp_path / 'pickle.pth')], 'pickle.pth'),
        ([image, config, str(tmp_path / 'classes.pth')], 'the same num_classes'),
        ([image, *net, '--skip', 'TTT'], "'TTT' is not a skip code"),
        ([image, *net, '--budget-ms', '-1'], 'should be a positive number of milliseconds, but got -1.0'),
        ([image, *net, '--budget-ms', '19'], 'the cheapest, TTTT, takes 20 ms'),
        ([image, *net, '--sub-nets', 'none.json'], 'none.json'),
        ([image, *net, '--score-thr', '7'], '--score-thr should be from 0 to 1'),
        ([image, *net, '--device', 'abacus'], "device 'abacus' cannot be used"),
    ):
        fails(demo, [*argv, '--out', 'out'], capsys, message)
    (tmp_path / 'file').write_text('')
    fails(demo, [image, *net, '--skip', 'TTTT', '--out', 'file'], capsys, 'cannot write to file')
    assert sorted(path.name for path in elsewhere.iterdir()) == [
        'broken.jpg', 'cache', 'classes.pth', 'empty', 'file', 'images', 'page.pth', 'pickle.pth']  # fmt: skip
