"""RoIAlign (He et al., 2017): features of boxes, sampled by bilinear interpolation and averaged over each bin."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import widened
from .left_out import left_out
from .threads import fill

AVERAGE = 1


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output``.

    Args:
        input: features (N, C, H, W).
        rois: boxes (R, 5) as image, x1, y1, x2, y2 in pixels of the images.
        output: (R, C, aligned_height, aligned_width).
        argmax_y: where the maxima are, which only pool_mode 0 needs.
        argmax_x: the same.
        aligned_height: rows of bins.
        aligned_width: columns of bins.
        spatial_scale: size of the features against the images.
        sampling_ratio: points a bin and side; 0: as many as the bin has cells.
        pool_mode: 1: the average of a bin's points; 0, their maximum, is left out.
        aligned: cells' centres lie at half pixels, so that boxes are shifted by half a cell.
    """
    _require_average(pool_mode)
    features = widened(input).contiguous()

    def align(some: Tensor) -> Tensor:
        geometry = spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        return torch.ops.torchvision.roi_align(features, some, *geometry)

    fill(output, align, widened(rois), dim=0)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill the gradient of the features; arguments as in the forward pass."""
    _require_average(pool_mode)
    boxes = widened(rois)
    images, _, height, width = grad_input.shape

    def spread(some: Tensor) -> Tensor:
        shape = aligned_height, aligned_width, images, some.shape[1], height, width
        return torch.ops.torchvision._roi_align_backward(some, boxes, spatial_scale, *shape, sampling_ratio, aligned)

    # Boxes overlap and add to the same cells in their order, channels do not.
    fill(grad_input, spread, widened(grad_output), dim=1)


def _require_average(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        raise left_out("roi_align with pool_mode='max'")
