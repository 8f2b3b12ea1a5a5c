import math

import pytest
import torch

from adn_mmdet.distillation import FEATURE_KLS, gap_channel_kl, spatial_kl

LOG3 = math.log(3)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def test_gap_channel_by_hand():
    # Two images of two channels; the channel means are (log 3, 0) and (0, 0) for the super-net, 0 for the base-net.
    super_feat = torch.zeros(2, 2, 1, 2)
    super_feat[0, 0, 0] = torch.tensor([0.0, 2 * LOG3])
    expected = kl([3 / 4, 1 / 4], [1 / 2, 1 / 2]) / 2  # the second image adds 0
    assert gap_channel_kl(super_feat, torch.zeros(2, 2, 1, 2)).item() == pytest.approx(expected, abs=1e-6)


def test_spatial_by_hand():
    # One image of two channels, 1×2 positions; only the first channel differs.
    super_feat, base_feat = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    super_feat[0, 0, 0, 0], base_feat[0, 0, 0, 1] = LOG3, LOG3
    expected = kl([3 / 4, 1 / 4], [1 / 4, 3 / 4]) / 2  # averaged over two channels
    assert spatial_kl(super_feat, base_feat).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('name', FEATURE_KLS)
def test_temperature_divides_the_features(name):
    super_feat, base_feat = torch.randn(2, 2, 4, 3, 5)
    scaled = FEATURE_KLS[name](super_feat / 4, base_feat / 4, 1.0)
    assert torch.allclose(FEATURE_KLS[name](super_feat, base_feat, 4.0), scaled)


@pytest.mark.parametrize('name', FEATURE_KLS)
def test_no_gradient_reaches_the_super_net(name):
    super_feat, base_feat = (torch.randn(2, 4, 3, 5, requires_grad=True) for _ in range(2))
    FEATURE_KLS[name](super_feat, base_feat, 1.0).backward()
    assert super_feat.grad is None and base_feat.grad.abs().sum() > 0


@pytest.mark.parametrize('name', FEATURE_KLS)
def test_zero_for_equal_features_and_independent_of_scale_of_the_map(name):
    feat, other = torch.randn(2, 1, 4, 2, 2)
    assert FEATURE_KLS[name](feat, feat, 1.0).item() == pytest.approx(0, abs=1e-7)
    repeated = [tensor.repeat(3, 1, 1, 1) for tensor in (feat, other)]
    assert torch.allclose(FEATURE_KLS[name](*repeated, 1.0), FEATURE_KLS[name](feat, other, 1.0))


@pytest.mark.parametrize('name', FEATURE_KLS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    super_feat, base_feat = (torch.randn(2, 4, 3, 5).to(dtype) for _ in range(2))
    with torch.autocast('cpu', torch.bfloat16):
        value = FEATURE_KLS[name](super_feat, base_feat, 1.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, FEATURE_KLS[name](super_feat.float(), base_feat.float(), 1.0))
