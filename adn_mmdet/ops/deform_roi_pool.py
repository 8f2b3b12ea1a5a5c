"""Deformable RoI pooling (Dai et al., 2017): RoIAlign whose bins are moved by offsets that are learnt."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .dtypes import widened


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill ``output``.

    Args:
        input: features (N, C, H, W).
        rois: boxes (R, 5) as image, x1, y1, x2, y2 in pixels of the images.
        offset: (R, 2, pooled_height, pooled_width) as x, y; empty: bins are not moved.
        output: (R, C, pooled_height, pooled_width).
        pooled_height: rows of bins.
        pooled_width: columns of bins.
        spatial_scale: size of the features against the images.
        sampling_ratio: points a bin and side; 0: as many as the bin has cells.
        gamma: size of an offset of 1 against the box.
    """
    features, boxes, moves = map(widened, (input, rois, offset))
    geometry = pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma
    total = torch.zeros_like(widened(output))
    for indices, weights, points in _points(boxes, moves, *geometry):
        total[indices] += weights * _sample(features[int(boxes[indices[0], 0])], points)
    output.copy_(total)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Fill the gradients of the features and the offsets, point by point, so that memory does not grow with points."""
    features, boxes, grads = map(widened, (input, rois, grad_output))
    moves = widened(offset).detach()
    total, total_moves = torch.zeros_like(features), torch.zeros_like(moves)
    geometry = pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma
    scale = (boxes[:, 3:] - boxes[:, 1:3]) * spatial_scale * gamma
    for indices, weights, points in _points(boxes, moves, *geometry):
        image = int(boxes[indices[0], 0])
        plane, places = features[image].detach().requires_grad_(), points.requires_grad_()
        with torch.enable_grad():
            sampled = _sample(plane, places)
        grad_plane, grad_places = torch.autograd.grad(sampled, (plane, places), weights * grads[indices])
        total[image] += grad_plane
        if moves.numel():
            total_moves[indices] += grad_places.permute(0, 3, 1, 2) * scale[indices, :, None, None]
    grad_input.copy_(total)
    grad_offset.copy_(total_moves)


def _points(
    boxes: Tensor, moves: Tensor, rows: int, columns: int, spatial_scale: float, ratio: int, gamma: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One point of each bin at a time: indices (K,) of an image's boxes, weights (K, 1, 1, 1), x, y (K, h, w, 2)."""
    start = boxes[:, 1:3] * spatial_scale - 0.5
    size = boxes[:, 3:] * spatial_scale - 0.5 - start
    bins = size / boxes.new_tensor([columns, rows])
    numbers = torch.full_like(bins, ratio) if ratio else bins.ceil()
    place = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing='xy'), -1).to(boxes)
    for image in boxes[:, 0].unique():
        most = numbers[boxes[:, 0] == image].amax(0).int().tolist()
        for step in torch.cartesian_prod(*(torch.arange(number) for number in most)).to(boxes).view(-1, 2):
            indices = ((boxes[:, 0] == image) & (step < numbers).all(1)).nonzero().flatten()
            if not len(indices):
                continue
            inside = (place + ((step + 0.5) / numbers[indices])[:, None, None]) * bins[indices][:, None, None]
            points = start[indices][:, None, None] + inside
            if moves.numel():
                points = points + gamma * size[indices][:, None, None] * moves[indices].permute(0, 2, 3, 1)
            yield indices, 1 / numbers[indices].prod(1).view(-1, 1, 1, 1), points


def _sample(plane: Tensor, points: Tensor) -> Tensor:
    """Values (K, C, h, w) of a feature map (C, H, W) at (K, h, w, 2) x, y; 0 from one cell outside on."""
    sizes = points.new_tensor([plane.shape[2], plane.shape[1]])
    grid = 2 * points / (sizes - 1).clamp(min=1) - 1
    values = F.grid_sample(plane[None], grid.flatten(0, 1)[None], padding_mode='border', align_corners=True)
    values = values[0].unflatten(1, points.shape[:2]).transpose(0, 1)
    return values * ((points >= -1) & (points <= sizes)).all(-1)[:, None]
