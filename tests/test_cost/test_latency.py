import sys
import threading
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.structures import DetDataSample
from mmengine.dataset import Compose, pseudo_collate
from tiny import batch, build, small_images, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from adn_mmdet import OperatingPoint, SkipConfig, UserError, compile_stages
from adn_mmdet.cost import energy, latency, timing
from adn_mmdet.cost.images import Reading, find_images
from adn_mmdet.cost.latency import measure_latency, summarize, with_references
from adn_mmdet.cost.timing import interleave, interleaved_medians
from adn_mmdet.input_size import for_images, pipeline_at
from adn_mmdet.points import point_in_force

SUPER_AND_BASE = [SkipConfig.super_net(4), SkipConfig.base_net(4)]


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    """Energy is measured over one call."""
    monkeypatch.setattr(energy, 'LEAST_SECONDS', 0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a test moves it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(latency, 'time', SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(timing, 'timer', lambda: clock.now)
    return clock


def attributes(model):
    return [set(vars(module)) for module in model.modules()]


def test_functions_take_turns():
    calls = []

    def record(name):
        calls.append(name)
        return name, len(calls)

    results = interleave({name: lambda name=name: record(name) for name in 'ab'}, rounds=2, warmup=1)
    assert calls == list('ababab')
    assert results == {'a': [('a', 3), ('a', 5)], 'b': [('b', 4), ('b', 6)]}


def test_medians_without_the_warmup(clock):
    steps = iter([100.0, 1.0, 5.0, 2.0])

    def work():
        clock.now += next(steps)

    assert interleaved_medians({'work': work}, rounds=3, warmup=1) == {'work': 2.0}


def test_the_parts_of_a_detector(clock):
    """Layers that take known times: every one of them is found in its part, and nothing stays on the detector."""
    detector = build(tiny_config())

    def takes(seconds, call=lambda *args, **kwargs: None):
        def run(*args, **kwargs):
            clock.now += seconds
            return call(*args, **kwargs)

        return run

    for stage in detector.backbone.stages:
        for block in stage:
            block.register_forward_hook(takes(1.0))
    for module, seconds in (
        (detector.neck.fpn_convs[0], 0.5),
        (detector.rpn_head, 0.25),
        (detector.roi_head.bbox_head, 0.25),
    ):
        module.register_forward_hook(takes(seconds))
    for head in (detector.rpn_head, detector.roi_head.bbox_head):
        head.predict_by_feat = takes(2.0, head.predict_by_feat)
    before = attributes(detector)
    super_net, base_net = measure_latency(detector.train(), SUPER_AND_BASE, (64, 64), batch_size=2, rounds=2, warmup=1)
    assert (super_net.skip, super_net.ms, super_net.backbone_ms) == ('FFFF', 21e3, 16e3)
    assert (base_net.skip, base_net.ms, base_net.backbone_ms) == ('TTTT', 14e3, 9e3)
    for row in (super_net, base_net):
        assert (row.neck_ms, row.heads_ms, row.post_ms) == (500, 500, 4000)
        assert (row.ms_p90, row.ms_iqr) == (row.ms, 0)
    assert (super_net.ratio, super_net.ratio_low, super_net.ratio_high) == (1, 1, 1)
    assert (base_net.ratio, base_net.ratio_low, base_net.ratio_high) == (14 / 21,) * 3
    assert attributes(detector) == before and detector.training and detector.backbone.training
    detector.roi_head.forward = detector.roi_head.predict = None  # fails in the middle of a call
    with pytest.raises(TypeError):
        measure_latency(detector, SUPER_AND_BASE, (64, 64), rounds=1)
    assert vars(detector.backbone).keys() == before[list(detector.modules()).index(detector.backbone)]
    assert str(detector.backbone.resolve_skip()) == 'FFFF'


@pytest.fixture
def timed_blocks(clock):
    """A detector whose residual blocks take a second each."""
    detector = build(tiny_config()).eval()

    def wait(*args):
        clock.now += 1.0

    for stage in detector.backbone.stages:
        for block in stage:
            block.register_forward_hook(wait)
    return detector


def test_another_thread_detects_meanwhile(timed_blocks):
    """It neither sees that the detector is timed, nor is timed as a part of it: 16 s of a backbone stay 16 s."""
    detector, shared = timed_blocks, attributes(timed_blocks)
    data = batch(detector)
    failures, threads = [], []

    def detect():
        detector(**data, mode='predict')
        if attributes(detector) != shared or detector.training:
            failures.append('changed')

    def detect_elsewhere(*args):
        if threading.current_thread() is threading.main_thread():
            threads.append(threading.Thread(target=torch.no_grad()(detect)))
            threads[-1].start()
            threads[-1].join()

    detector.neck.register_forward_pre_hook(detect_elsewhere)
    shared = attributes(detector)
    (row,) = measure_latency(detector, SUPER_AND_BASE[:1], (64, 64), rounds=2, warmup=0)
    assert len(threads) == 2 and not failures
    assert (row.ms, row.backbone_ms, row.neck_ms) == (32e3, 16e3, 0)  # the whole call waited for the other thread


def test_two_threads_time_one_detector(timed_blocks):
    detector, rows = timed_blocks, []
    at_once = threading.Barrier(2)

    def meet(*args):
        at_once.wait(30)

    detector.backbone.register_forward_pre_hook(meet)
    before = attributes(detector)

    def measure():
        rows.extend(measure_latency(detector, SUPER_AND_BASE[:1], (64, 64), rounds=2, warmup=0))

    threads = [threading.Thread(target=measure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows) == 2 and attributes(detector) == before
    assert all(0 < row.backbone_ms <= row.ms for row in rows)


def test_the_copy_shares_weights_and_what_is_compiled():
    detector = build(tiny_config('retinanet'))
    compile_stages(detector, backend='eager')
    twin = latency._copy(detector)
    for name, tensor in detector.state_dict().items():
        assert twin.state_dict()[name].data_ptr() == tensor.data_ptr()
    assert twin.backbone is not detector.backbone and twin.backbone.layer3 is detector.backbone.layer3
    assert latency._copy(build(tiny_config())).backbone.layer3 is not detector.backbone.layer3


def test_images_are_those_that_are_given(shapes):
    """A round's are the same for all depths, and are prepared as the detector prepares them."""
    detector, seen = build(tiny_config('retinanet')).eval(), []
    images = find_images(tiny_config(), shapes / 'val')
    detector.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    measure_latency(detector, SUPER_AND_BASE, (64, 64), rounds=7, warmup=1, images=images)
    for path, first, second in zip([*images.paths, *images.paths[:2]], seen[::2], seen[1::2], strict=True):
        image = torch.from_numpy(mmcv.imread(path)).permute(2, 0, 1)
        expected = detector.data_preprocessor(dict(inputs=[image], data_samples=[DetDataSample()]))['inputs']
        assert torch.equal(first, expected) and torch.equal(second, expected)


def test_what_detections_cost_is_timed(shapes):
    """The mask head runs where something is found: the reason for real images."""
    cfg = small_images(tiny_config('mask_rcnn'))
    detector, calls = build(cfg), []
    detector.roi_head.mask_head.register_forward_hook(lambda *args: calls.append(len(args[2])))
    images = find_images(cfg, shapes / 'val')
    measure_latency(detector, SUPER_AND_BASE[:1], (64, 64), rounds=2, warmup=0, images=images)
    assert len(calls) == 2 and min(calls) > 0


class Casts(TorchDispatchMode):
    """Counts casts of one weight."""

    def __init__(self, weight):
        super().__init__()
        self.pointer, self.number = weight.data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.pointer:
            self.number += 1
        return function(*args, **(kwargs or {}))


def test_weights_are_cast_at_every_call():
    """As inference pays for it: an autocast around all calls would cast them once."""
    detector = build(tiny_config('retinanet'))
    with Casts(detector.backbone.layer1[0].conv1.weight) as casts:
        measure_latency(detector, SUPER_AND_BASE, (64, 64), rounds=3, warmup=1, amp=True)
    assert casts.number == 2 * 4


def test_a_detector_without_depths():
    (row,) = measure_latency(build(tiny_config('retinanet', 'base')), None, (64, 64), rounds=1, warmup=0)
    assert row.skip is None and row.ratio == 1
    parts = row.decode_ms, row.resize_ms, row.backbone_ms, row.neck_ms, row.heads_ms, row.post_ms
    assert row.ms == pytest.approx(sum(parts)) and min(parts) > 0


def test_statistics_by_hand():
    """Columns: the whole, decode, resize, backbone, neck, post."""
    first = 1e-3 * np.array([[10, 1, 2, 4, 1, 2], [30, 1, 2, 6, 3, 2], [20, 1, 2, 5, 2, 2]])
    points = map(OperatingPoint.parse, ('FFFF', 'TTTT', 'FFFF@64', 'TTTT@64'))
    row, half, small, both = summarize(dict(zip(points, (first, first / 2, first / 4, first / 5))))
    assert (row.ms, row.ms_p90, row.ms_iqr) == pytest.approx((20, 28, 10))
    parts = row.decode_ms, row.resize_ms, row.backbone_ms, row.neck_ms, row.post_ms, row.heads_ms
    assert parts == pytest.approx((1, 2, 5, 2, 2, 8))
    # The same rounds are drawn for both, so that noise which both have in common cancels out.
    assert (half.ratio, half.ratio_low, half.ratio_high) == pytest.approx((0.5, 0.5, 0.5))
    # Beside a point stands the super-net at its own size: what depth gives there.
    assert (both.skip, both.size, both.ratio, both.depth_ratio) == ('TTTT', 64, pytest.approx(0.2), pytest.approx(0.8))
    assert [found.depth_ratio for found in (row, half, small)] == pytest.approx([1, 0.5, 1])
    (alone,) = summarize({OperatingPoint.parse('TTTT'): first})
    assert alone.depth_ratio is None


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        means = zip(map(OperatingPoint.parse, ('FFFF', 'TTTT')), (1.0, 0.7))
        noisy = {point: mean * generator.lognormal(0, 0.2, (25, 6)) for point, mean in means}
        row = summarize(noisy)[1]
        assert row.ratio_low <= row.ratio <= row.ratio_high
        hits += row.ratio_low < 0.7 < row.ratio_high
    assert hits >= 88


def test_what_points_are_compared_with():
    asked = list(map(OperatingPoint.parse, ('TTTT@64', 'TFFF@64', 'TTTT@64/5')))
    assert list(map(str, with_references(asked))) == 'FFFF FFFF@64 TTTT@64 TFFF@64 FFFF@64/5 TTTT@64/5'.split()
    assert with_references([OperatingPoint(None, 64)]) == [OperatingPoint(), OperatingPoint(None, 64)]


def test_points_are_timed_end_to_end(shapes, clock, monkeypatch):
    """Images are read, resized by the test pipeline to the size of each point, and detected on with its proposals."""
    cfg = small_images(tiny_config())
    detector, seen, proposals = build(cfg).eval(), [], []
    images = find_images(cfg, shapes / 'val')
    points = list(map(OperatingPoint.parse, ('FFFF', 'TTTT@96/5')))
    decode = Reading.decode

    def slow(self, image):
        clock.now += 0.5
        return decode(self, image)

    monkeypatch.setattr(Reading, 'decode', slow)
    detector.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    detector.roi_head.bbox_head.register_forward_hook(lambda module, args, out: proposals.append(len(args[0])))
    rows = measure_latency(detector, points, cfg, rounds=3, warmup=0, images=images)
    assert [(row.skip, row.size, row.proposals, row.decode_ms, row.ms) for row in rows] == [
        ('FFFF', None, None, 500, 500),
        ('TTTT', 96, 5, 500, 500),
    ]
    assert proposals == [20, 5] * 3
    for index, path in enumerate(images.paths[:3]):
        for found, size in zip(seen[2 * index : 2 * index + 2], (None, 96)):
            pipeline = Compose(for_images(pipeline_at(cfg, size)))
            expected = detector.data_preprocessor(pseudo_collate([pipeline(path)]), False)['inputs']
            assert torch.equal(found, expected) and found.shape[-1] == (size or 64)
    assert point_in_force(detector) == OperatingPoint.parse('FFFF') and type(detector.rpn_head) is RPNHead


def test_points_that_cannot_be_timed():
    cfg = small_images(tiny_config('retinanet'))
    for point, message in (('TTTT/300', 'RetinaNet has no number of proposals'), ('TTT', "'TTT' is not a skip code")):
        with pytest.raises(UserError, match=message):
            measure_latency(build(cfg), [OperatingPoint.parse(point)], cfg, rounds=1)
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='RandomChoiceResize', scales=[(64, 64)])
    with pytest.raises(UserError, match='cannot be told a size'):
        measure_latency(build(cfg), [OperatingPoint.parse('TTTT@64')], cfg, rounds=1)


class FakeMeter:
    """Says what energy was used by a clock that a test moves, and fails when it is told to."""

    def __init__(self, fails_at=None, joules=lambda: 1.0):
        self.windows, self.fails_at, self.joules = 0, fails_at, joules

    def begin(self):
        self.windows += 1
        if self.windows == self.fails_at:
            raise OSError('the counter is gone\nfor good')

    def end(self):
        return self.joules()


def test_energy_stands_beside_the_times(shapes):
    cfg = small_images(tiny_config('retinanet'))
    meter = FakeMeter()
    rows = measure_latency(build(cfg), SUPER_AND_BASE, cfg, rounds=1, warmup=0, meter=meter)
    assert meter.windows == 2 and all(row.as_row()['mj'] == row.mj > 0 for row in rows)


def test_millijoules_by_hand():
    calls = []
    meter = FakeMeter(joules=lambda: 0.5 * len(calls))
    assert energy.measure_energy({'one': lambda: calls.append(1)}, 2, meter) == {'one': 250}  # one call of two


@pytest.mark.parametrize(
    ('meter', 'reason'),
    [
        (FakeMeter(fails_at=2), 'OSError: the counter is gone for good'),
        (FakeMeter(joules=lambda: 0.0), 'it says 0.0 J'),
    ],
)
def test_a_meter_that_goes_away(meter, reason):
    """One line; times are kept, and no row has energy."""
    cfg = small_images(tiny_config('retinanet'))
    with pytest.warns(UserWarning, match='the energy meter fails') as warned:
        rows = measure_latency(build(cfg), SUPER_AND_BASE, cfg, rounds=1, warmup=0, meter=meter)
    (said,) = [str(entry.message) for entry in warned if 'meter' in str(entry.message)]
    assert reason in said and '\n' not in said and 'times are kept' in said
    assert all(row.ms > 0 and row.mj is None and 'mj' not in row.as_row() for row in rows)


def test_a_machine_without_a_meter(monkeypatch):
    monkeypatch.setitem(sys.modules, 'zeus.monitor', None)  # as if it were not installed
    assert energy.find_meter(torch.device('cpu')) is None


def test_channels_last_gives_the_same_at_every_code():
    detector, seen = build(tiny_config('retinanet')), []
    images = torch.rand(2, 3, 64, 64)
    codes = SkipConfig.all(4)
    detector.eval()
    with torch.no_grad():
        expected = {code: detector.backbone(images, code) for code in codes}
    detector.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride()))
    measure_latency(detector, codes[:1], (64, 64), rounds=1, warmup=0, channels_last=True)
    assert seen == [images.to(memory_format=torch.channels_last)[:1].stride()]
    with torch.no_grad():
        for code in codes:
            for found, wanted in zip(
                detector.backbone(images.to(memory_format=torch.channels_last), code), expected[code]
            ):
                assert found.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'wrong', [dict(rounds=0), dict(batch_size=-1), dict(input_size=(64, 0))], ids=lambda wrong: next(iter(wrong))
)
def test_numbers_that_are_not_positive(wrong):
    (name, value) = next(iter(wrong.items()))
    settings = dict(input_size=(64, 64), rounds=1) | wrong
    with pytest.raises(UserError, match=f'{name} should be at least 1, but got {np.min(value)}'):
        measure_latency(torch.nn.Identity(), None, **settings)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(rounds=1.5), 'rounds should be a whole number, but got 1.5'),
        (dict(batch_size='2'), "batch_size should be a whole number, but got '2'"),
        (dict(rounds=float('nan')), 'rounds should be a whole number, but got nan'),
        (dict(input_size=5), r'input_size should be \(height, width\) in pixels, but got 5'),
        (dict(input_size=(64, 64, 3)), r'but got \(64, 64, 3\)'),
        (dict(input_size=(64, 0.5)), 'input_size should be a whole number, but got 0.5'),
    ],
)
def test_what_is_no_number(wrong, message):
    with pytest.raises(UserError, match=message):
        measure_latency(torch.nn.Identity(), None, **(dict(input_size=(64, 64), rounds=1) | wrong))
