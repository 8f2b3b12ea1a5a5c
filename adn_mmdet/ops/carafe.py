"""CARAFE (Wang et al., 2019): upsampling whose kernel is predicted for each output position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill ``output`` (N, C, sH, sW) with sums of ``features`` (N, C, H, W) weighted by ``masks`` (N, G·k², sH, sW).

    ``rfeatures`` is what mmcv keeps for the backward pass: the features in a layout of its own; here as they are.
    """
    rfeatures.copy_(features)
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill the gradients of the features and the masks."""
    features, masks = rfeatures.detach().requires_grad_(), masks.detach().requires_grad_()
    with torch.enable_grad():
        output = _reassemble(features, masks, kernel_size, group_size, scale_factor)
    grads = torch.autograd.grad(output, (features, masks), top_grad)
    bottom_grad.copy_(grads[0])
    mask_grad.copy_(grads[1])


def _reassemble(features: Tensor, masks: Tensor, kernel_size: int, groups: int, scale: int) -> Tensor:
    """The s² outputs over one input position share its neighbourhood of k² cells."""
    batch, channels, height, width = features.shape
    patches = F.unfold(features, kernel_size, padding=kernel_size // 2)
    patches = patches.view(batch, groups, channels // groups, kernel_size**2, height, width)
    weights = masks.view(batch, groups, kernel_size**2, height, scale, width, scale)
    output = torch.einsum('ngckhw,ngkhiwj->ngchiwj', patches, weights)
    return output.reshape(batch, channels, height * scale, width * scale)
