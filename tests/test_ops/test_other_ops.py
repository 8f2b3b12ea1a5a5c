"""Focal loss, deformable attention, CARAFE and masked convolution, against loops in float64."""

import math

import pytest
import torch
from loops import assert_same, bilinear, with_gradients
from mmcv.ops import MaskedConv2d, sigmoid_focal_loss
from mmcv.ops.carafe import CARAFEPack, carafe
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from torch.nn import functional as F

GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def seed():
    GENERATOR.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def focal_loss_loop(logits, targets, weight, gamma, alpha):
    """Equation 5 of the paper, for each logit; class 3 is the background."""
    losses = []
    for row, target in zip(logits, targets.tolist(), strict=True):
        for number, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            p_t, alpha_t = (p, alpha) if number == target else (1 - p, 1 - alpha)
            losses.append(-weight[target] * alpha_t * (1 - p_t) ** gamma * torch.log(p_t))
    return torch.stack(losses).view(logits.shape)


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_focal_loss(reduction, gamma, alpha):
    targets, weight = torch.tensor([0, 2, 3, 1, 3]), [0.5, 1.0, 2.0, 1.0]

    def reference(weight):
        def loss(logits):
            losses = focal_loss_loop(logits, targets, weight, gamma, alpha)
            return {'none': losses, 'mean': losses.sum() / 5, 'sum': losses.sum()}[reduction]

        return loss

    logits = normal(5, 3) * 2
    assert_same(
        lambda logits: sigmoid_focal_loss(logits, targets, gamma, alpha, logits.new_tensor(weight[:3]), reduction),
        reference(weight),
        logits,
    )
    assert_same(
        lambda logits: sigmoid_focal_loss(logits, targets, gamma, alpha, None, reduction), reference([1.0] * 4), logits
    )


def test_focal_loss_of_certain_logits_is_finite():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]])
    loss, gradient = with_gradients(
        lambda x: sigmoid_focal_loss(x, torch.tensor([0, 0]), 2.0, 0.25, None, 'none'), logits
    )
    smallest = math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(loss, torch.tensor([[0.0, 0.0], [-0.25 * smallest, -0.75 * smallest]]))
    assert gradient.isfinite().all()
    empty = with_gradients(lambda x: sigmoid_focal_loss(x, torch.zeros(0).long(), 2.0, 0.25, None, 'sum'), logits[:0])
    assert empty[0] == 0 and empty[1].shape == (0, 2)


SIZES = torch.tensor([[4, 5], [2, 3]])
STARTS = torch.tensor([0, 20])


def attention_loop(value, locations, weights):
    batch, _, heads, depth = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    levels = value.split([20, 6], 1)
    outputs = []
    for image in range(batch):
        for query in range(queries):
            for head in range(heads):
                for channel in range(depth):
                    total = value.new_zeros(())
                    for level, (height, width) in enumerate(SIZES.tolist()):
                        plane = levels[level][image, :, head, channel].view(height, width)
                        for point in range(points):
                            x, y = locations[image, query, head, level, point]
                            sample = bilinear(plane, y * height - 0.5, x * width - 0.5)
                            total = total + weights[image, query, head, level, point] * sample
                    outputs.append(total)
    return torch.stack(outputs).view(batch, queries, heads * depth)


def attention_tensors(batch=2, queries=3, heads=2, depth=3, points=2):
    locations = torch.rand(batch, queries, heads, 2, points, 2, generator=GENERATOR) * 1.4 - 0.2
    weights = normal(batch, queries, heads, 2, points).flatten(3).softmax(-1).view(batch, queries, heads, 2, points)
    return normal(batch, 26, heads, depth), locations, weights


def attend(value, locations, weights):
    return MultiScaleDeformableAttnFunction.apply(value, SIZES, STARTS, locations, weights, 64)


def test_deformable_attention():
    tensors = attention_tensors()
    assert_same(attend, attention_loop, *tensors)
    assert torch.autograd.gradcheck(attend, [tensor.double().requires_grad_() for tensor in tensors])
    expected = multi_scale_deformable_attn_pytorch(tensors[0], SIZES, *tensors[1:])
    torch.testing.assert_close(attend(*tensors), expected)


def carafe_loop(features, masks, kernel, groups, scale):
    batch, channels, height, width = features.shape
    outputs = []
    for image in range(batch):
        for channel in range(channels):
            group = channel // (channels // groups)
            for row in range(height * scale):
                for column in range(width * scale):
                    total = features.new_zeros(())
                    for i in range(kernel):
                        for j in range(kernel):
                            y, x = row // scale + i - kernel // 2, column // scale + j - kernel // 2
                            if 0 <= y < height and 0 <= x < width:
                                weight = masks[image, (group * kernel + i) * kernel + j, row, column]
                                total = total + features[image, channel, y, x] * weight
                    outputs.append(total)
    return torch.stack(outputs).view(batch, channels, height * scale, width * scale)


@pytest.mark.parametrize('kernel, groups, scale', [(3, 1, 2), (1, 2, 3)])
def test_carafe(kernel, groups, scale):
    tensors = normal(2, 2, 3, 2), normal(2, groups * kernel**2, 3 * scale, 2 * scale)
    options = kernel, groups, scale
    assert_same(lambda *t: carafe(*t, *options), lambda *t: carafe_loop(*t, *options), *tensors)
    inputs = [tensor.double().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *tensors: carafe(*tensors, *options), inputs)


def test_carafe_layer_trains():
    layer = CARAFEPack(4, scale_factor=2, compressed_channels=3)
    output = layer(normal(1, 4, 5, 6))
    output.square().sum().backward()
    assert output.shape == (1, 4, 10, 12)
    assert all(parameter.grad.any() for parameter in layer.content_encoder.parameters())


@pytest.mark.parametrize('kernel, padding', [(3, 1), (1, 0), (3, 0)])
def test_masked_convolution(kernel, padding):
    layer = MaskedConv2d(2, 3, kernel, padding=padding)
    features, mask = normal(1, 2, 6, 7), normal(1, 6, 7) > 0.5
    if not padding and kernel > 1:
        mask[:, -2:], mask[:, :, -2:] = False, False  # outputs are fewer than inputs
    with torch.no_grad():
        expected = F.conv2d(features, layer.weight, layer.bias, padding=padding)
        rows, columns = expected.shape[2:]
        found = layer(features, mask)
        torch.testing.assert_close(found, expected * mask[:, None, :rows, :columns])
        assert not layer(features, torch.zeros_like(mask)).any()
        torch.testing.assert_close(layer(features), expected)
