import math

import pytest
import torch
from torch.nn import functional as F

from adn_mmdet.distillation import FEATURE_LOSSES
from adn_mmdet.distillation.losses import sigmoid_kl, softmax_kl

GAP_CHANNEL, CHANNEL, SPATIAL, L2 = (FEATURE_LOSSES[name] for name in ('gap_channel', 'channel', 'spatial', 'l2'))
LOG3 = math.log(3)
# A sigmoid_kl of rows, by hand: one anchor, two classes.
P, Q = (3 / 4, 1 / 2), (1 / 2, 1 / 4)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def test_gap_channel_by_hand():
    # Two images of two channels; the channel means are (log 3, 0) and (0, 0) for the super-net, 0 for the base-net.
    super_feat = torch.zeros(2, 2, 1, 2)
    super_feat[0, 0, 0] = torch.tensor([0.0, 2 * LOG3])
    expected = kl([3 / 4, 1 / 4], [1 / 2, 1 / 2]) / 2  # the second image adds 0
    assert GAP_CHANNEL(super_feat, torch.zeros(2, 2, 1, 2)).item() == pytest.approx(expected, abs=1e-6)


def test_channel_by_hand():
    # One image of two channels, 1×2 positions; only the first position differs.
    super_feat, base_feat = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    super_feat[0, 0, 0, 0], base_feat[0, 1, 0, 0] = LOG3, LOG3
    expected = kl([3 / 4, 1 / 4], [1 / 4, 3 / 4]) / 2  # averaged over two positions
    assert CHANNEL(super_feat, base_feat).item() == pytest.approx(expected, abs=1e-6)


def test_spatial_by_hand():
    # One image of two channels, 1×2 positions; only the first channel differs.
    super_feat, base_feat = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    super_feat[0, 0, 0, 0], base_feat[0, 0, 0, 1] = LOG3, LOG3
    expected = kl([3 / 4, 1 / 4], [1 / 4, 3 / 4]) / 2  # averaged over two channels
    assert SPATIAL(super_feat, base_feat).item() == pytest.approx(expected, abs=1e-6)


def test_l2_by_hand():
    super_feat, base_feat = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    super_feat[0, 0, 0, 0], base_feat[0, 1, 0, 1] = 3, -1
    assert L2(super_feat, base_feat).item() == pytest.approx((9 + 1) / 4)
    # Each map has a mean of 0 and a deviation of 1 when standardised: (1, -1) against (-1, 1), and (1, -1) twice.
    super_feat = torch.tensor([5.0, 1.0, 3.0, 1.0]).view(1, 2, 1, 2)
    base_feat = torch.tensor([1.0, 2.0, 9.0, 2.0]).view(1, 2, 1, 2)
    assert FEATURE_LOSSES['std_l2'](super_feat, base_feat).item() == pytest.approx((4 + 4) / 4, rel=1e-4)


@pytest.mark.parametrize('name', ['gap_channel', 'channel', 'spatial', 'l2'])
def test_standardised_does_not_depend_on_scale_and_offset(name):
    loss, standardised = FEATURE_LOSSES[name], FEATURE_LOSSES[f'std_{name}']
    super_feat, base_feat = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    other = 7 * base_feat + 2
    value = standardised(super_feat, base_feat)
    assert torch.allclose(standardised(super_feat, other), value, rtol=1e-3)
    assert not torch.allclose(loss(super_feat, other), loss(super_feat, base_feat), rtol=1e-1)


def test_standardised_is_the_plain_loss_of_standard_scores():
    super_feat, base_feat = torch.randn(2, 2, 4, 3, 5)

    def scores(feat):
        mean, variance = feat.mean((2, 3), keepdim=True), feat.var((2, 3), correction=0, keepdim=True)
        return (feat - mean) / (variance + 1e-5).sqrt()

    expected = SPATIAL(scores(super_feat), scores(base_feat), 2.0)
    assert torch.allclose(FEATURE_LOSSES['std_spatial'](super_feat, base_feat, 2.0), expected, rtol=1e-4)


def test_a_constant_map_is_no_division_by_zero():
    base_feat = torch.zeros(1, 2, 3, 3, requires_grad=True)
    for loss in FEATURE_LOSSES.values():
        loss(torch.randn(1, 2, 3, 3), base_feat, 1.0).backward()
    assert base_feat.grad.isfinite().all()


@pytest.mark.parametrize('name', FEATURE_LOSSES)
def test_temperature_divides_the_features(name):
    super_feat, base_feat = torch.randn(2, 2, 4, 3, 5)
    loss = FEATURE_LOSSES[name]
    if name.startswith('std_'):  # whose features have no scale: high temperatures make any KL small, as 1 / T²
        assert loss(super_feat, base_feat, 100.0) < 1e-3 * loss(super_feat, base_feat, 1.0)
    else:
        assert torch.allclose(loss(super_feat, base_feat, 4.0), loss(super_feat / 4, base_feat / 4, 1.0))


@pytest.mark.parametrize('name', FEATURE_LOSSES)
def test_no_gradient_reaches_the_super_net(name):
    super_feat, base_feat = (torch.randn(2, 4, 3, 5, requires_grad=True) for _ in range(2))
    FEATURE_LOSSES[name](super_feat, base_feat, 1.0).backward()
    assert super_feat.grad is None and base_feat.grad.abs().sum() > 0


@pytest.mark.parametrize('name', FEATURE_LOSSES)
def test_zero_for_equal_features_and_independent_of_the_size_of_the_batch(name):
    feat, other = torch.randn(2, 1, 4, 2, 2)
    assert FEATURE_LOSSES[name](feat, feat, 1.0).item() == pytest.approx(0, abs=1e-7)
    repeated = [tensor.repeat(3, 1, 1, 1) for tensor in (feat, other)]
    assert torch.allclose(FEATURE_LOSSES[name](*repeated, 1.0), FEATURE_LOSSES[name](feat, other, 1.0))


@pytest.mark.parametrize('name', FEATURE_LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    super_feat, base_feat = (torch.randn(2, 4, 3, 5).to(dtype) for _ in range(2))
    with torch.autocast('cpu', torch.bfloat16):
        value = FEATURE_LOSSES[name](super_feat, base_feat, 1.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, FEATURE_LOSSES[name](super_feat.float(), base_feat.float(), 1.0))


def test_softmax_kl_by_hand():
    super_logits = torch.tensor([[LOG3, 0.0], [0.0, 0.0]])
    expected = kl([3 / 4, 1 / 4], [1 / 2, 1 / 2]) / 2  # averaged over the rows
    assert softmax_kl(super_logits, torch.zeros(2, 2)).item() == pytest.approx(expected, abs=1e-6)
    empty = torch.zeros(0, 2, requires_grad=True)
    softmax_kl(torch.zeros(0, 2), empty).backward()
    assert empty.grad.shape == (0, 2)


@pytest.mark.parametrize('copies, divisor', [(1, 1), (4, 3)])
def test_sigmoid_kl_by_hand(copies, divisor):
    # A row's summed KL, over how many rows the super-net takes for objects: 1 · 3/4, hence at least 1, or 4 · 3/4.
    row = sum(kl([p, 1 - p], [q, 1 - q]) for p, q in zip(P, Q))
    super_logits, base_logits = (torch.logit(torch.tensor([probability] * copies)) for probability in (P, Q))
    assert sigmoid_kl(super_logits, base_logits).item() == pytest.approx(copies * row / divisor, rel=1e-5)


@pytest.mark.parametrize('loss', [softmax_kl, sigmoid_kl])
def test_prediction_kl_is_finite_zero_for_equals_and_trains_the_base_net_alone(loss):
    super_logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    base_logits = (-super_logits).detach().requires_grad_()
    value = loss(super_logits, base_logits)
    value.backward()
    assert value.isfinite() and base_logits.grad.isfinite().all() and super_logits.grad is None
    assert loss(super_logits, super_logits).item() == pytest.approx(0, abs=1e-6)
    half = loss(super_logits.bfloat16(), F.relu(base_logits).bfloat16())
    assert half.dtype == torch.float32
