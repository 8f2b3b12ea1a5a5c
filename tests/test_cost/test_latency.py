from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import build, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.cost import latency
from adn_mmdet.cost.latency import interleave, interleaved_medians, measure_latency, summarize

SUPER_AND_BASE = [SkipConfig.super_net(4), SkipConfig.base_net(4)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a test moves it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(latency, 'time', SimpleNamespace(perf_counter=lambda: clock.now))
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


def test_a_detector_without_depths():
    (row,) = measure_latency(build(tiny_config('retinanet', 'base')), None, (64, 64), rounds=1, warmup=0)
    assert row.skip is None and row.ratio == 1
    assert row.ms == pytest.approx(row.backbone_ms + row.neck_ms + row.heads_ms + row.post_ms)
    assert min(row.backbone_ms, row.neck_ms, row.heads_ms, row.post_ms) > 0


def test_statistics_by_hand():
    first = np.array([[0.01, 0.004, 0.001, 0.002], [0.03, 0.006, 0.003, 0.002], [0.02, 0.005, 0.002, 0.002]])
    row, half = summarize({'FFFF': first, 'TTTT': first / 2})
    assert (row.ms, row.ms_p90, row.ms_iqr) == pytest.approx((20, 28, 10))
    assert (row.backbone_ms, row.neck_ms, row.post_ms, row.heads_ms) == pytest.approx((5, 2, 2, 11))
    # The same rounds are drawn for both, so that noise which both have in common cancels out.
    assert (half.ratio, half.ratio_low, half.ratio_high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        noisy = {code: mean * generator.lognormal(0, 0.2, (25, 4)) for code, mean in (('FFFF', 1.0), ('TTTT', 0.7))}
        row = summarize(noisy)[1]
        assert row.ratio_low <= row.ratio <= row.ratio_high
        hits += row.ratio_low < 0.7 < row.ratio_high
    assert hits >= 88


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
