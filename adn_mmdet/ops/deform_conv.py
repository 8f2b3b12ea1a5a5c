"""Deformable convolutions 1 (Dai et al., 2017) and 2 (Zhu et al., 2019): version 1 is version 2 without a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dtypes import widened


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    im2col_step: int,
    **geometry: int,
) -> None:
    """Fill ``output``; ``columns``, ``ones`` and ``im2col_step`` are working memory of mmcv's."""
    no_mask, no_bias = _without(input), input.new_zeros(len(weight))
    output.copy_(_forward(input, weight, offset, no_mask, no_bias, _version_1(**geometry), use_mask=False))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    im2col_step: int,
    **geometry: int,
) -> None:
    """Fill the gradients of the input and the offsets."""
    grads = _backward(grad_output, input, weight, offset, _without(input), _version_1(**geometry), use_mask=False)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    im2col_step: int,
    **geometry: int,
) -> None:
    """Add the weight's gradient, times ``scale``."""
    # The gradient does not depend on the weight itself.
    args = _version_1(**geometry)
    grads = _backward(grad_output, input, grad_weight, offset, _without(input), args, use_mask=False)
    grad_weight.add_(grads[1].to(grad_weight), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Fill ``output``; ``ones`` and ``columns`` are working memory of mmcv's."""
    bias = bias if with_bias else input.new_zeros(len(weight))
    output.copy_(_forward(input, weight, offset, mask, bias, _version_2(**geometry), use_mask=True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Fill the five gradients."""
    grads = _backward(grad_output, input, weight, offset, mask, _version_2(**geometry), use_mask=True)
    for into, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads[:4], strict=True):
        into.copy_(grad)
    if with_bias:
        grad_bias.copy_(grads[4])


def _version_1(
    kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
    group: int, deformable_group: int,
) -> tuple[int, ...]:  # fmt: skip
    return dH, dW, padH, padW, dilationH, dilationW, group, deformable_group


def _version_2(
    kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
    dilation_w: int, group: int, deformable_group: int,
) -> tuple[int, ...]:  # fmt: skip
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def _without(input: Tensor) -> Tensor:
    """What torchvision takes where there is no mask."""
    return input.new_zeros(len(input), 1)


def _forward(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, geometry: tuple[int, ...], use_mask: bool
) -> Tensor:
    tensors = [widened(tensor) for tensor in (input, weight, offset, mask, bias)]
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, use_mask)


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, geometry: tuple[int, ...], use_mask: bool
) -> Any:
    tensors = [widened(tensor) for tensor in (grad, input, weight, offset, mask, input.new_zeros(len(weight)))]
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, use_mask)
