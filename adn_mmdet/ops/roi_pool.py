"""RoIPool (Girshick, 2015): the maximum of each bin of a box."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import widened


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill ``output`` (R, C, h, w) with maxima and ``argmax`` with their flat positions, -1 where a bin is empty.

    mmcv rounds a bin's edges outwards, torchvision a box's edges to whole cells: so torchvision is given mmcv's bins.
    """
    bins, empty = _bins(input, rois, pooled_height, pooled_width, spatial_scale)
    maxima, positions = torch.ops.torchvision.roi_pool(widened(input), bins, 1.0, 1, 1)
    shape = len(rois), pooled_height, pooled_width, input.shape[1]
    empty = empty.view(*shape[:3], 1)
    output.copy_(maxima.view(shape).masked_fill(empty, 0).permute(0, 3, 1, 2))
    argmax.copy_(positions.view(shape).masked_fill(empty, -1).permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add each bin's gradient to ``grad_input`` (N, C, H, W) at the position of its maximum."""
    channels = torch.arange(grad_input.shape[1], device=rois.device).view(1, -1, 1, 1)
    maps = rois[:, 0].long().view(-1, 1, 1, 1) * grad_input.shape[1] + channels
    index = maps * grad_input[0, 0].numel() + argmax.clamp(min=0)
    grads = widened(grad_output).masked_fill(argmax < 0, 0)
    total = widened(grad_input).flatten().index_add(0, index.flatten(), grads.flatten())
    grad_input.copy_(total.view_as(grad_input))


def _bins(input: Tensor, rois: Tensor, rows: int, columns: int, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """Boxes (R·rows·columns, 5) whose corners are the first and last cells of each bin, and which of them are empty."""
    rois = widened(rois)
    first, end = rois[:, 1:3] * spatial_scale, (rois[:, 3:5] + 1) * spatial_scale
    size = end - first
    sides = []
    for axis, (count, limit) in enumerate([(columns, input.shape[3]), (rows, input.shape[2])]):
        edges = torch.arange(count + 1, device=rois.device) * (size[:, axis, None] / count) + first[:, axis, None]
        sides.append((edges[:, :-1].floor().clamp(0, limit), edges[:, 1:].ceil().clamp(0, limit)))
    (left, right), (top, bottom) = sides
    shape = len(rois), rows, columns
    image = rois[:, 0, None, None].expand(shape)
    left, right = (side[:, None, :].expand(shape) for side in (left, right))
    top, bottom = (side[:, :, None].expand(shape) for side in (top, bottom))
    empty = (right <= left) | (bottom <= top) | (size <= 0).any(1)[:, None, None]
    return torch.stack([image, left, top, right - 1, bottom - 1], -1).view(-1, 5), empty.flatten()
