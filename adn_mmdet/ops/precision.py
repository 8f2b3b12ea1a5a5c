"""Mixed precision when detecting: which one a device has, and what stays exact in it."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmengine.utils import apply_to
from torch import Tensor, nn


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Mixed precision of a device: float16 on a GPU; bfloat16 on the CPU, where float16 is slow."""
    return torch.autocast(device.type, torch.bfloat16 if device.type == 'cpu' else torch.float16, enabled)


def keep_boxes_exact(detector: nn.Module, device: torch.device) -> None:
    """Let boxes and scores be float32 from now on where a detector runs in bfloat16, as it does on the CPU.

    bfloat16 has 8 bits: beyond 512 pixels it knows every fourth one. mmdet gives boxes the precision of the features
    that they are cut out of, so RoI extractors are handed float32; heads hand it out, whatever they compute in.
    """
    if device.type != 'cpu':
        return
    for module in detector.modules():
        if isinstance(module, BaseRoIExtractor) and _float32_in not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_float32_in)
    for head in post_processors(detector):
        if _float32_out not in head._forward_hooks.values():
            head.register_forward_hook(_float32_out)


def post_processors(detector: nn.Module) -> list[nn.Module]:
    """The heads that turn what networks put out into detections, by ``predict_by_feat``."""
    return [module for module in detector.modules() if hasattr(module, 'predict_by_feat')]


def _float32_in(module: nn.Module, args: Any) -> Any:
    return _float32(args)


def _float32_out(module: nn.Module, args: Any, output: Any) -> Any:
    return _float32(output)


def _float32(values: Any) -> Any:
    return apply_to(values, lambda value: isinstance(value, Tensor) and value.is_floating_point(), Tensor.float)
