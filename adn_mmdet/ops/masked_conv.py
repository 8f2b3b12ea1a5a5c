"""Masked convolution: the patches that a convolution reads at some positions, and its outputs put back there."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fill ``col`` (C·kernel_h·kernel_w, K) with the patches of ``im`` (1, C, H, W) around K positions."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    patches = padded.unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    col.copy_(patches[:, mask_h_idx, mask_w_idx].permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Put ``col`` (C, K) at K positions of ``im`` (1, C, H, W)."""
    im[0][:, mask_h_idx, mask_w_idx] = col
