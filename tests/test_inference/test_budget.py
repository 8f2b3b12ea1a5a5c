import json
import shutil
import threading

import numpy as np
import pytest
import torch
from mmengine.config import Config

from adn_mmdet import OperatingPoint, UserError
from adn_mmdet.cost.latency import LatencyRow
from adn_mmdet.files import file_sha256
from adn_mmdet.inference import AnyDepthInferencer, budget
from adn_mmdet.input_size import default_input_size
from adn_mmdet.results.intervals import pack
from adn_mmdet.results.rows import read_latency


def latency(point, ms):
    """An eighth for half the size, as much as half for fewer proposals."""
    ms = ms * (0.125 if point.size else 1) * (0.5 if point.proposals else 1)
    return LatencyRow(str(point.skip), float(ms), *[1.0] * 9, size=point.size, proposals=point.proposals)


@pytest.fixture
def measured(monkeypatch):
    """Measurements instead of this noisy machine's: 40 ms, less 3 or so for a skipped block."""
    calls = []

    def measure(model, points, inputs, **settings):
        shape = default_input_size(inputs) if isinstance(inputs, Config) else inputs
        calls.append(dict(settings, codes=len(points), points=list(map(str, points)), input_size=list(shape)))
        saved = (3.0, 6.5, 9.25, 3.1)  # of stages with 1, 2, 3 and 1 skippable blocks
        return [latency(point, 40 - sum(s for s, flag in zip(saved, point.skip) if flag)) for point in points]

    monkeypatch.setattr(budget, 'measure_latency', measure)
    return calls


@pytest.fixture
def sub_nets(checkpoint, tmp_path):
    """A work folder with results in which less depth is not always worse."""

    def write(average_precision, **run):
        described = dict(
            name='tiny', checkpoint_sha256=file_sha256(checkpoint), annotations_sha256=None, classes=['circle'],
            num_images=1, input_size=[64, 64], **run,
        )  # fmt: skip
        rows = [dict(skip=code, gmacs=1.0, **metrics) for code, metrics in average_precision.items()]
        (tmp_path / 'sub_nets.json').write_text(json.dumps(dict(schema=1, run=described, rows=rows)))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ('ms', 'code'),
    [(1000, 'FFFF'), (40, 'FFFF'), (39.9, 'TFFF'), (36.95, 'FFFT'), (36, 'TFFT'), (18.15, 'TTTT'), (25, 'FTTF')],
)
def test_without_results_the_deepest_within_the_budget(inferencer, measured, ms, code):
    """TFFF and FFFT skip one block, TFFT and FTFF two: the faster of them is on the front, whatever the budget."""
    front = {'TFFF': 'FFFT', 'TFFT': 'FTFF'}  # 37 and 36.9 ms; 33.9 and 33.5 ms
    assert str(inferencer.choose(budget_ms=ms)) == front.get(code, code)


def test_it_says_that_it_calibrates_and_does_so_once(inferencer, measured, capsys, shapes):
    image = next((shapes / 'val').iterdir())
    assert [inferencer(image, budget_ms=22)['predictions'][0]['skip'] for _ in range(2)] == ['FTTT', 'FTTT']
    assert len(measured) == 1 and measured[0]['codes'] == 16 and measured[0]['input_size'] == [64, 64]
    assert 'Calibrating 16 depths, 1×3×64×64, on ' in capsys.readouterr().out
    inferencer(image, budget_ms=22, batch_size=2)  # has latencies of its own
    assert len(measured) == 2 and measured[1]['batch_size'] == 2


def test_results_say_which_depth_is_best(tiny_cfg, checkpoint, sub_nets, measured, tmp_path):
    folder = sub_nets({
        'FFFF': dict(bbox_mAP=0.40, segm_mAP=0.30),
        'TFFF': dict(bbox_mAP=0.41, segm_mAP=0.29),  # better and faster than FFFF
        'TTFF': dict(bbox_mAP=None),  # no object: unknown
        'TTTT': dict(bbox_mAP=0.35, segm_mAP=0.25),
    })  # fmt: skip
    options = dict(device='cpu', cache_dir=tmp_path / 'cache')
    by_box = AnyDepthInferencer(tiny_cfg, checkpoint, sub_nets=folder, **options)
    assert [str(by_box.choose(budget_ms=ms)) for ms in (100, 38, 36.9, 20)] == ['TFFF', 'TFFF', 'TTTT', 'TTTT']
    assert measured[0]['codes'] == 3  # only those that may be chosen
    by_mask = AnyDepthInferencer(tiny_cfg, checkpoint, sub_nets=folder / 'sub_nets.json', metric='segm_mAP', **options)
    assert str(by_mask.choose(budget_ms=100)) == 'FFFF'
    assert len(measured) == 1  # the same three: from the cache
    with pytest.raises(UserError, match='has no bbox_mAP_x of any depth'):
        AnyDepthInferencer(tiny_cfg, checkpoint, sub_nets=folder, metric='bbox_mAP_x', **options)


def test_of_points_that_cannot_be_told_apart_the_cheapest_runs(
    tiny_cfg, checkpoint, sub_nets, measured, tmp_path, capsys
):
    drawn = np.random.default_rng(0).normal(0.40, 0.02, 300)
    folder = sub_nets({
        'FFFF': dict(bbox_mAP=0.41, bbox_mAP_resampled=pack(drawn + np.linspace(-0.01, 0.03, 300))),
        'TFFF': dict(bbox_mAP=0.40, bbox_mAP_resampled=pack(drawn)),
        'TTTT': dict(bbox_mAP=0.35, bbox_mAP_resampled=pack(drawn - 0.05)),
    })  # fmt: skip
    inferencer = AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu', sub_nets=folder, cache_dir=tmp_path / 'cache')
    assert [str(inferencer.choose(budget_ms=ms)) for ms in (100, 100, 36.9)] == ['TFFF', 'TFFF', 'TTTT']
    assert capsys.readouterr().out.count('fits as well, but cannot be told apart from it') == 1


def test_results_say_which_point_is_best(tiny_cfg, checkpoint, tmp_path, measured, shapes, capsys):
    """Budgets choose among the points that were tested; the config's own size and proposals are not named."""
    run = dict(
        name='tiny', checkpoint_sha256=file_sha256(checkpoint), annotations_sha256=None, classes=['circle'],
        num_images=1, input_size=[64, 64],
    )  # fmt: skip
    tested = {('FFFF', 64, 20): 0.4, ('TTTT', 64, 20): 0.3, ('FFFF', 32, 20): 0.35, ('TTTT', 32, 5): 0.2}
    rows = [
        dict(skip=skip, size=size, proposals=proposals, gmacs=1.0, bbox_mAP=ap)
        for (skip, size, proposals), ap in tested.items()
    ]
    (tmp_path / 'sub_nets.json').write_text(json.dumps(dict(schema=2, run=run, rows=rows)))
    inferencer = AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu', sub_nets=tmp_path, cache_dir=tmp_path / 'cache')
    chosen = [str(inferencer.choose(budget_ms=ms)) for ms in (40, 39, 5, 4.9, 1.2)]
    assert chosen == ['FFFF', 'FFFF@32', 'FFFF@32', 'TTTT@32/5', 'TTTT@32/5']
    # FFFF stands beside every size and number of proposals, though only those that were tested may be chosen.
    assert measured[0]['points'] == ['FFFF', 'TTTT', 'FFFF@32', 'FFFF@32/5', 'TTTT@32/5']
    assert 'Calibrating 5 points, ' in capsys.readouterr().out
    image = next((shapes / 'val').iterdir())
    assert inferencer(image, budget_ms=2)['predictions'][0]['point'] == 'TTTT@32/5'
    with pytest.raises(
        UserError, match='no sub-network fits a budget of 1 ms: the cheapest, TTTT@32/5, takes 1.134 ms'
    ):
        inferencer(image, budget_ms=1)
    with pytest.raises(UserError, match='input_size=.32, 32. is for points of one size'):
        inferencer.calibrate((32, 32))
    assert len(measured) == 1


def test_results_of_other_weights_are_refused(tiny_cfg, checkpoint, sub_nets, tmp_path):
    with pytest.raises(UserError, match='cannot read .*sub_nets.json'):
        AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu', sub_nets=tmp_path)
    folder = sub_nets({'FFFF': dict(bbox_mAP=0.4)}, norms_sha256='0' * 64)
    with pytest.raises(UserError, match='was measured with recalibrated norms'):
        AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu', sub_nets=folder)
    other = tmp_path / 'other.pth'
    weights = torch.load(checkpoint)
    torch.save({**weights, 'epoch': 2}, other)
    folder = sub_nets({'FFFF': dict(bbox_mAP=0.4)})
    with pytest.raises(UserError, match='was measured with other weights: test the weights that are to run'):
        AnyDepthInferencer(tiny_cfg, other, 'cpu', sub_nets=folder)
    folder = sub_nets({'FFF': dict(bbox_mAP=0.4)})
    with pytest.raises(UserError, match="'FFF' is not a skip code"):
        AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu', sub_nets=folder)


@pytest.mark.parametrize('ms', [0, -5, float('nan'), float('inf'), '35', []])
def test_budgets_that_are_none(inferencer, measured, ms):
    with pytest.raises(UserError, match='budget_ms should be a positive number of milliseconds, but got'):
        inferencer.choose(budget_ms=ms)
    assert not measured


def test_budgets_that_no_depth_keeps(inferencer, measured, shapes, tmp_path):
    image = next((shapes / 'val').iterdir())
    with pytest.raises(UserError, match=r'budget of 18 ms: the cheapest, TTTT, takes 18\.15 ms'):
        inferencer(image, budget_ms=18, out_dir=tmp_path / 'out')
    with pytest.raises(UserError, match='skip=TTTT and budget_ms=18 were both given: give one of them'):
        inferencer(image, budget_ms=18, skip='TTTT', out_dir=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_cache(tiny_cfg, checkpoint, measured, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    inferencer = AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu')

    def files_after(**arguments):
        inferencer.calibrate(**arguments)
        return sorted((tmp_path / 'adn_mmdet').iterdir())

    (path,) = files_after(rounds=10)
    latencies = read_latency(path)
    assert latencies.run.checkpoint_sha256 == file_sha256(checkpoint) and latencies.run.rounds == 10
    assert latencies.rows[0] == latency(OperatingPoint.parse('FFFF'), 40).as_row()
    inferencer.cfg.model.backbone.skip = 'TTTT'  # how deep the stored skip is makes no difference
    assert files_after(rounds=5) == [path] and len(measured) == 1
    assert files_after(rounds=11) == [path] and len(measured) == 2  # more rounds: anew
    path.write_text('{"schema": 1, "ro')  # cut off: anew
    assert files_after(rounds=1) == [path] and len(measured) == 3
    assert len(files_after(batch_size=2)) == 2
    assert len(files_after(input_size=(96, 64))) == 3
    assert len(files_after()) == 3 and measured[-1]['input_size'] == [96, 64]  # remembered
    torch.set_num_threads(2)
    try:
        assert len(files_after()) == 4
    finally:
        torch.set_num_threads(1)
    inferencer.channels_last = True
    assert len(files_after()) == 5
    inferencer.cfg.model.test_cfg.rcnn.score_thr = 0.5
    assert len(files_after()) == 6 and len(measured) == 8


def test_the_cache_knows_weights_and_images(tiny_cfg, checkpoint, shapes, measured, tmp_path, capsys):
    """What is detected decides the time: other weights, and other images, are measured again."""
    other = tmp_path / 'other.pth'
    torch.save({**torch.load(checkpoint), 'epoch': 2}, other)
    folder = shutil.copytree(shapes / 'val', tmp_path / 'val')

    def calibrated(weights, **options):
        return AnyDepthInferencer(tiny_cfg, weights, 'cpu', cache_dir=tmp_path / 'cache', **options).calibrate()

    for weights, options in ((checkpoint, {}), (other, {}), (checkpoint, dict(images=folder))):
        for _ in range(2):
            calibrated(weights, **options)
    assert len(measured) == 3 and 'with noise' in capsys.readouterr().out
    assert [call['images'].source for call in measured] == ['noise', 'noise', str(folder)]
    first, second, *_ = sorted(folder.iterdir())
    first.write_bytes(second.read_bytes())
    calibrated(checkpoint, images=folder)
    assert len(measured) == 4 and f'with {folder}' in capsys.readouterr().out
    files = [json.loads(path.read_text())['run']['images'] for path in (tmp_path / 'cache').iterdir()]
    assert sorted(entry['number'] for entry in files) == [0, 0, 6, 6]
    assert len({entry['sha256'] for entry in files}) == 3


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(input_size=5), r'input_size should be \(height, width\) in pixels, but got 5'),
        (dict(input_size=()), r'but got \(\)'),
        (dict(rounds=1.5), 'rounds should be a whole number, but got 1.5'),
        (dict(batch_size=1.5), 'batch_size should be a whole number, but got 1.5'),
        (dict(batch_size=None), 'batch_size should be a whole number, but got None'),
    ],
)
def test_what_is_no_number(inferencer, measured, wrong, message):
    with pytest.raises(UserError, match=message):
        inferencer.calibrate(**wrong)
    assert not measured


def test_threads_detect_while_another_calibrates(inferencer, shapes):
    """Predictions are those of their own depth, and the parts of a depth are no more than the whole."""
    image = str(next((shapes / 'val').iterdir()))
    expected = inferencer(image, skip='TTFF')['predictions'][0]['scores']
    inferencer.worth = {point: inferencer.worth[point] for point in map(OperatingPoint.parse, ('FFFF', 'TTTT'))}
    found, done = [], threading.Event()

    def detect():
        while not done.is_set():
            found.append(inferencer(image, skip='TTFF')['predictions'][0]['scores'])

    thread = threading.Thread(target=detect)
    thread.start()
    try:
        rows = inferencer.calibrate(rounds=5)
    finally:
        done.set()
        thread.join()
    assert found and all(scores == expected for scores in found)
    for row in rows:
        assert 0 < row['backbone_ms'] < row['ms']


def test_a_cache_that_cannot_be_written_is_only_a_warning(tiny_cfg, checkpoint, measured, tmp_path):
    (tmp_path / 'file').write_text('')
    inferencer = AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu', cache_dir=tmp_path / 'file')
    with pytest.warns(UserWarning, match='cannot be kept'):
        assert len(inferencer.calibrate()) == 16


def test_a_real_calibration(inferencer):
    two = list(map(OperatingPoint.parse, ('FFFF', 'TTTT')))
    inferencer.worth = {point: inferencer.worth[point] for point in two}
    rows = inferencer.calibrate(rounds=1)
    assert [row['skip'] for row in rows] == ['FFFF', 'TTTT'] and all(row['ms'] > 0 for row in rows)
    with pytest.raises(UserError, match='rounds should be at least 1'):
        inferencer.calibrate(input_size=(32, 32), rounds=0)
    assert inferencer.input_size == (64, 64)
