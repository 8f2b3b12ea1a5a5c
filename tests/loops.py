"""What the tests of operators have in common: references are loops over single numbers, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def bilinear(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The value of a plane (H, W) between its cells; cells outside are 0."""
    top, left = math.floor(y), math.floor(x)
    value = plane.new_zeros(())
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            value = value + (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return value


def with_gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """What a function returns, and the gradients of all its floating-point arguments for a fixed gradient of that."""
    leaves = [tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    output = function(*leaves)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_same(function: Callable[..., Tensor], reference: Callable[..., Tensor], *tensors: Tensor) -> None:
    """A function equals its reference in float64, and up to rounding in float32, forward and backward."""
    expected = with_gradients(reference, *map(_to(torch.float64), tensors))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        found = with_gradients(function, *map(_to(dtype), tensors))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def _to(dtype: torch.dtype) -> Callable[[Tensor], Any]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
