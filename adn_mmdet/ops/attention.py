"""Multi-scale deformable attention (Zhu et al., 2021): a weighted sum of points sampled from several feature maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sample and sum.

    Args:
        value: (N, K, M, D): the K = Σ H·W cells of all levels, one level behind the other, for M heads.
        value_spatial_shapes: (L, 2), the levels' heights and widths.
        value_level_start_index: (L,), which the heights and widths imply.
        sampling_locations: (N, Q, M, L, P, 2) as x, y, where 0 to 1 spans a level.
        attention_weights: (N, Q, M, L, P).
        im2col_step: working memory of mmcv's.

    Returns:
        (N, Q, M·D).
    """
    batch, _, heads, depth = value.shape
    queries, levels, points = (attention_weights.shape[axis] for axis in (1, 3, 4))
    sizes = value_spatial_shapes.tolist()
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([height * width for height, width in sizes], -1)
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    sampled = [
        F.grid_sample(maps[level].unflatten(-1, size), grids[:, :, level], align_corners=False)
        for level, size in enumerate(sizes)
    ]
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.cat(sampled, -1) * weights).sum(-1)
    return output.view(batch, heads * depth, queries).transpose(1, 2).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fill the three gradients; the forward pass is computed once more for them."""
    shapes = value_spatial_shapes, value_level_start_index
    value, locations, weights = (
        tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)
    )
    with torch.enable_grad():
        output = ms_deform_attn_forward(value, *shapes, locations, weights, im2col_step)
    grads = torch.autograd.grad(output, (value, locations, weights), grad_output)
    for into, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        into.copy_(grad)
