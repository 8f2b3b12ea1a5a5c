import json
from functools import partial

import pytest
import torch
from test_tools import fails
from tiny import build, load_tool, small_images, tiny_config

from adn_mmdet import OperatingPoint
from adn_mmdet.backbones.compiled import compile_stages
from adn_mmdet.cost import energy, latency_file
from adn_mmdet.cost.images import find_images
from adn_mmdet.cost.latency import LatencyRow
from adn_mmdet.files import file_sha256
from adn_mmdet.results.rows import read_latency


@pytest.fixture(scope='module')
def main():
    return load_tool('benchmark').main


@pytest.fixture(autouse=True)
def no_meter(monkeypatch):
    """Machines differ in whether they have one."""
    monkeypatch.setattr(latency_file, 'find_meter', lambda device: None)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('latency') / 'tiny.py'
    tiny_config('retinanet').dump(path)
    return str(path)


@pytest.fixture(scope='module')
def checkpoint(config):
    path = config.replace('.py', '.pth')
    torch.save(build(tiny_config('retinanet')).state_dict(), path)
    return path


def quick(*argv):
    return ['latency', *argv, '--shape', '64', '96', '--rounds', '1', '--device', 'cpu']


def test_table_and_file(main, config, checkpoint, shapes, tmp_path, capsys):
    path = tmp_path / 'new' / 'latency.json'
    argv = quick(config, checkpoint, '--skip', 'ffff,TTFT', '--batch-size', '2', '--amp', '--json', str(path))
    images = find_images(tiny_config(), shapes / 'val')
    assert main([*argv, '--images', str(shapes / 'val')]) == 0
    printed = capsys.readouterr().out
    assert 'TTFT' in printed and '2×3×64×96' in printed and 'post' in printed and 'Untrained' not in printed
    assert 'On 6 images of' in printed and 'noise' not in printed
    content = json.loads(path.read_text())
    assert (content['schema'], content['kind']) == (2, 'latency')
    run = content['run']
    assert run.pop('device') and run.pop('versions').keys() == {'python', 'torch', 'mmdet'}
    assert run == dict(
        name='tiny',
        config=config,
        checkpoint_sha256=file_sha256(checkpoint),
        threads=torch.get_num_threads(),
        batch_size=2,
        input_size=[64, 96],
        amp=True,
        channels_last=False,
        compile=False,
        rounds=1,
        size=None,  # images are fitted into --shape
        proposals=None,
        images=dict(source=str(shapes / 'val'), number=6, sha256=images.about()['sha256']),
    )
    names = 'skip ms ms_p90 ms_iqr backbone_ms neck_ms heads_ms post_ms ratio ratio_low ratio_high'
    names += ' size proposals decode_ms resize_ms depth_ratio'  # no mj without a meter
    assert [' '.join(row) for row in content['rows']] == [names] * 2
    super_net, other = content['rows']
    assert (super_net['skip'], super_net['ratio'], other['skip']) == ('FFFF', 1.0, 'TTFT')
    assert other['ratio'] == other['ms'] / super_net['ms']


def test_all_codes_of_untrained_weights(main, config, tmp_path, capsys):
    path = tmp_path / 'latency.json'
    assert main([*quick(config, '--channels-last'), '--json', str(path)]) == 0
    printed = capsys.readouterr().out
    assert 'Untrained weights' in printed and 'On noise, where what is found' in printed
    content = json.loads(path.read_text())
    assert content['run']['images'] == dict(source='noise', number=0, sha256=None)
    assert len({row['skip'] for row in content['rows']}) == 16 and content['rows'][0]['skip'] == 'FFFF'
    assert content['run']['checkpoint_sha256'] is None and content['run']['channels_last']


def test_a_compiled_net_without_depths(main, tmp_path, capsys, monkeypatch):
    config, path = tmp_path / 'base.py', tmp_path / 'latency.json'
    tiny_config('retinanet', 'base').dump(config)
    compiled = []
    monkeypatch.setattr(latency_file, 'compile_stages', compiled.append)
    argv = [*quick(str(config)), '--json', str(path)]
    assert main([*argv, '--compile']) == 0
    content = json.loads(path.read_text())
    assert [row['skip'] for row in content['rows']] == [None] and content['run']['compile']
    assert [type(model).__name__ for model in compiled] == ['RetinaNet']
    fails(main, [*argv, '--skip', 'all'], capsys, 'ShallowResNet has no depth to choose')

    def no_compiler(graph, inputs):
        raise RuntimeError('no g++')

    monkeypatch.setattr(latency_file, 'compile_stages', partial(compile_stages, backend=no_compiler))
    fails(main, [*argv, '--compile'], capsys, 'torch.compile failed (no g++): it needs a C++ compiler')


def test_the_configs_own_test_set_is_timed(main, shapes, tmp_path):
    cfg = tiny_config('retinanet')
    cfg.test_dataloader.dataset.update(
        data_root=f'{shapes}/', ann_file='annotations/instances_val.json', data_prefix=dict(img='val/')
    )
    cfg.dump(tmp_path / 'own.py')
    argv = [*quick(str(tmp_path / 'own.py'), '--skip', 'FFFF'), '--json', str(tmp_path / 'latency.json')]
    assert main(argv) == 0
    images = json.loads((tmp_path / 'latency.json').read_text())['run']['images']
    assert (images['source'], images['number']) == (str(shapes / 'val'), 6)


def test_points(main, shapes, tmp_path, capsys, monkeypatch):
    """Rows name size and proposals, as those of tools/test.py; FFFF stands beside every point, and the first is it."""
    cfg = small_images(tiny_config())
    cfg.test_dataloader.dataset.update(data_root=f'{shapes}/', ann_file='', data_prefix=dict(img='val/'))
    cfg.dump(tmp_path / 'points.py')
    path = tmp_path / 'points.json'
    argv = ['latency', str(tmp_path / 'points.py'), '--rounds', '2', '--device', 'cpu', '--json', str(path)]
    monkeypatch.setattr(latency_file, 'find_meter', lambda device: OneJoule())
    monkeypatch.setattr(energy, 'LEAST_SECONDS', 0)
    assert main([*argv, '--skip', 'TTTT', '--sizes', '64,96', '--proposals', '5']) == 0
    printed = capsys.readouterr().out
    assert all(
        text in printed for text in ('TTTT@96/5', 'FFFF@64/20', 'decode', 'resize', 'depth', 'mJ', 'Medians of 2')
    )
    results = read_latency(path)
    points = [str(OperatingPoint.from_row(row)) for row in results.rows]
    assert points == 'FFFF@64/20 FFFF@96/5 TTTT@96/5 FFFF@64/5 TTTT@64/5'.split()
    assert (results.run.size, results.run.proposals, results.run.input_size) == (64, 20, [64, 64])
    first, _, row, _, _ = results.rows
    assert first['ratio'] == first['depth_ratio'] == 1 and row['ratio'] == row['ms'] / first['ms']
    assert row['depth_ratio'] == row['ms'] / results.rows[1]['ms'] and row['mj'] == 1000
    parts = ('decode', 'resize', 'backbone', 'neck', 'heads', 'post')
    assert sum(row[f'{part}_ms'] for part in parts) == pytest.approx(row['ms'])
    for wrong, message in (
        (['--sizes', '31'], 'size should be the short side of the input in pixels, a whole number from 32'),
        (['--sizes', '64', '--shape', '64', '64'], '--shape and --sizes both say how large images are: give one'),
        (['--proposals', '0'], 'proposals should be the number of region proposals, a whole number from 1'),
        (['--proposals', 'many'], "but got 'many'"),
    ):
        fails(main, [*argv, *wrong], capsys, message)
    assert results.rows == read_latency(path).rows


class OneJoule:
    """A meter."""

    def begin(self):
        pass

    def end(self):
        return 1.0


def test_proposals_of_a_detector_that_has_none(main, config, capsys):
    argv = ['latency', config, '--rounds', '1', '--device', 'cpu', '--proposals', '300']
    fails(main, argv, capsys, 'RetinaNet has no number of proposals to choose')


def test_names_are_no_markup(capsys):
    row = LatencyRow('FFFF', *[1.0] * 10).as_row()
    run = dict(
        name='a[/x]b', batch_size=1, input_size=[64, 64], device='[cpu]', threads=1, amp=False, channels_last=False,
        compile=False, versions={}, rounds=1, images=dict(source='[/y]', number=1, sha256=''), checkpoint_sha256='0',
    )  # fmt: skip
    latency_file.print_latency(dict(run=run, rows=[row]))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ('a[/x]b', '[cpu]', '[/y]'))


def test_mistakes(main, config, checkpoint, tmp_path, capsys):
    for option, name in (('--rounds', 'rounds'), ('--batch-size', 'batch_size')):
        fails(main, ['latency', config, option, '0'], capsys, f'{name} should be at least 1, but got 0')
    fails(main, ['backbone', '--shape', '-1', '9'], capsys, 'shape should be at least 1, but got -1')
    fails(main, [*quick(config), '--json', str(tmp_path)], capsys, 'is a folder')
    fails(main, [*quick(config), '--json', '/proc/nowhere/x.json'], capsys, 'cannot write to /proc/nowhere')
    fails(main, [*quick(config), '--images', str(tmp_path / 'none')], capsys, 'should be a folder of images')
    fails(main, quick(config, 'none.pth'), capsys, 'there is no checkpoint none.pth')
    fails(main, quick(config, '--skip', 'TTT'), capsys, 'such as FFFF (super-net) or TTTT (base-net)')
    fails(main, quick('none.py'), capsys, 'there is no config none.py')
    disagreeing = ['--skip', 'TTTT', '--cfg-options', 'model.backbone.skip=FFFF']
    fails(main, [*quick(config), *disagreeing], capsys, 'disagree')
    if not torch.cuda.is_available():
        fails(main, [*quick(config), '--device', 'cuda'], capsys, 'torch sees no GPU')
    plain = tmp_path / 'plain.pth'
    weights = torch.load(checkpoint)
    torch.save({name: value for name, value in weights.items() if '_skip' not in name}, plain)
    fails(main, quick(config, str(plain)), capsys, '--allow-untrained')
