"""Deformable convolutions 1 and 2, against loops over output cells and kernel positions in float64."""

import pytest
import torch
from loops import assert_same, bilinear, with_gradients
from mmcv.ops import deform_conv2d, modulated_deform_conv2d
from mmcv.ops.deform_conv import DeformConv2dPack
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dPack

# Batch, stride, padding, dilation, groups of the weight, groups of the offsets.
GEOMETRIES = [(1, 1, 1, 1, 1, 1), (1, 2, 2, 2, 2, 1), (2, 1, 0, 1, 1, 2)]


def make_tensors(geometry):
    """Input, offsets, mask, weight and bias of a convolution of 4 channels to 2, by kernels of 3×2."""
    batch, stride, padding, dilation, groups, offset_groups = geometry
    generator = torch.Generator().manual_seed(sum(geometry))
    rows, columns = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel in ((4, 3), (4, 2))
    )

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.rand(batch, offset_groups * 6, rows, columns, generator=generator)
    offset = normal(batch, offset_groups * 12, rows, columns) * 1.5
    return normal(batch, 4, 4, 4), offset, mask, normal(2, 4 // groups, 3, 2), normal(2)


def deform_conv_loop(features, offset, mask, weight, bias, geometry):
    _, stride, padding, dilation, groups, offset_groups = geometry
    batch, _, rows, columns = offset.shape
    offset = offset.view(batch, offset_groups, 3, 2, 2, rows, columns)
    mask = mask.view(batch, offset_groups, 3, 2, rows, columns)
    outputs = []
    for image in range(batch):
        for out in range(2):
            for row in range(rows):
                for column in range(columns):
                    total = bias[out]
                    for place in range(weight.shape[1]):
                        channel = place + weight.shape[1] * (out * groups // 2)
                        group = channel * offset_groups // 4
                        for i in range(3):
                            for j in range(2):
                                moved = offset[image, group, i, j, :, row, column]
                                y = row * stride - padding + i * dilation + moved[0]
                                x = column * stride - padding + j * dilation + moved[1]
                                value = bilinear(features[image, channel], y, x)
                                total = total + weight[out, place, i, j] * mask[image, group, i, j, row, column] * value
                    outputs.append(total)
    return torch.stack(outputs).view(batch, 2, rows, columns)


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_version_1(geometry):
    features, offset, mask, weight, bias = make_tensors(geometry)
    ones, zeros = torch.ones_like(mask).double(), torch.zeros_like(bias).double()
    assert_same(
        lambda *tensors: deform_conv2d(*tensors, *geometry[1:]),
        lambda features, offset, weight: deform_conv_loop(features, offset, ones, weight, zeros, geometry),
        *(features, offset, weight),
    )


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_version_2(geometry):
    tensors = make_tensors(geometry)
    assert_same(
        lambda *tensors: modulated_deform_conv2d(*tensors, *geometry[1:]),
        lambda *tensors: deform_conv_loop(*tensors, geometry),
        *tensors,
    )
    *others, bias = tensors
    zeros = torch.zeros_like(bias).double()
    assert_same(
        lambda *tensors: modulated_deform_conv2d(*tensors, None, *geometry[1:]),
        lambda *tensors: deform_conv_loop(*tensors, zeros, geometry),
        *others,
    )


def test_bfloat16_is_computed_in_float32():
    *tensors, bias = (tensor.bfloat16() for tensor in make_tensors(GEOMETRIES[0]))
    arguments = *tensors, bias

    def in_float32(*tensors):
        return modulated_deform_conv2d(*(tensor.float() for tensor in tensors), *GEOMETRIES[0][1:]).bfloat16()

    found = with_gradients(lambda *tensors: modulated_deform_conv2d(*tensors, *GEOMETRIES[0][1:]), *arguments)
    for one, other in zip(found, with_gradients(in_float32, *arguments), strict=True):
        assert one.dtype == torch.bfloat16 and torch.equal(one, other)


@pytest.mark.parametrize('layer', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_layers_train_under_autocast(layer):
    conv = layer(4, 6, 3, padding=1, deform_groups=2)
    features = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast('cpu', torch.bfloat16):
        output = conv(features)
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in conv.parameters())
    torch.testing.assert_close(output.float(), conv(features), rtol=0.05, atol=0.05)
