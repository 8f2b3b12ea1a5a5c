"""What stands for the compiled module ``mmcv._ext``: mmcv's operators under the names by which mmcv calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision

from .attention import ms_deform_attn_backward, ms_deform_attn_forward
from .carafe import carafe_backward, carafe_forward
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .deform_roi_pool import deform_roi_pool_backward, deform_roi_pool_forward
from .focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from .left_out import left_out
from .masked_conv import masked_col2im_forward, masked_im2col_forward
from .roi_align import roi_align_backward, roi_align_forward
from .roi_pool import roi_pool_backward, roi_pool_forward
from .suppression import nms, nms_match, softnms

__all__ = [
    'carafe_backward',
    'carafe_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'deform_roi_pool_backward',
    'deform_roi_pool_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softnms',
]


def get_compiler_version() -> str:
    """What mmcv prints of its environment: which library its operators come from."""
    return f'none (operators of torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """The CUDA version that the operators were built with."""
    return torch.version.cuda or 'none'


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """mmcv asks for all its operators when it is imported, so that those left out fail only when called."""
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise left_out(name)

    return missing
