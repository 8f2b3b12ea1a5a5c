"""RoIAlign (He et al., 2017): features of boxes, sampled by bilinear interpolation and averaged over each bin."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import widened

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
        argmax_y: for maxima, which are left out.
        argmax_x: for maxima, which are left out.
        aligned_height: rows of bins.
        aligned_width: columns of bins.
        spatial_scale: size of the features against the images.
        sampling_ratio: points a bin and side; 0: as many as the bin has cells.
        pool_mode: 1 averages the points of a bin.
        aligned: cells' centres lie at half pixels, so that boxes are shifted by half a cell.
    """
    geometry = spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    _require_average(pool_mode)
    output.copy_(torch.ops.torchvision.roi_align(widened(input), widened(rois), *geometry))


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
    geometry = spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned
    _require_average(pool_mode)
    grad_input.copy_(torch.ops.torchvision._roi_align_backward(widened(grad_output), widened(rois), *geometry))


def _require_average(pool_mode: int) -> None:
    if pool_mode != AVERAGE:
        raise NotImplementedError("RoIAlign with pool_mode='max' is not among the operators here: use 'avg'")
