"""Mixed precision when detecting: which one a device has, and what stands in its way."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..errors import UserError


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Mixed precision of a device: float16 on a GPU; bfloat16 on the CPU, where float16 is slow."""
    return torch.autocast(device.type, torch.bfloat16 if device.type == 'cpu' else torch.float16, enabled)


def require_amp(detector: nn.Module, device: torch.device) -> None:
    """Make sure that a detector runs in mixed precision on a device.

    On the CPU, where mmcv's NMS has no bfloat16, its heads from now on hand out float32, whatever they compute in.

    Raises:
        UserError: it cannot.
    """
    if device.type != 'cpu':
        return
    if any(isinstance(module, RoIAlign) for module in detector.modules()):
        raise UserError(
            f"{type(detector).__name__} cannot run in mixed precision on the CPU, where mmcv's RoIAlign has no "
            'bfloat16: use a GPU, or leave --amp out'
        )
    for head in post_processors(detector):
        if _give_float32 not in head._forward_hooks.values():
            head.register_forward_hook(_give_float32)


def post_processors(detector: nn.Module) -> list[nn.Module]:
    """The heads that turn what networks put out into detections, by ``predict_by_feat``."""
    return [module for module in detector.modules() if hasattr(module, 'predict_by_feat')]


def _give_float32(module: nn.Module, args: Any, output: Any) -> Any:
    return apply_to(output, lambda value: isinstance(value, Tensor) and value.is_floating_point(), Tensor.float)
