"""Neck features of several sub-networks of one detector, without its heads."""

from __future__ import annotations

from collections.abc import Iterable

from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn

from ..skip_config import SkipConfig
from .adaptive_depth import Skip, find_backbone


def unwrap(model: nn.Module) -> BaseDetector:
    """The detector inside wrappers such as DDP, an EMA average or test-time augmentation."""
    while isinstance(inner := getattr(model, 'module', None), nn.Module):
        model = inner
    return model


def extract_feats(model: nn.Module, inputs: Tensor, codes: Iterable[Skip]) -> dict[str, tuple[Tensor, ...]]:
    """Run backbone and neck at each of ``codes``.

    Args:
        model: a detector with an adaptive-depth backbone; its train / eval mode is left as it is.
        inputs: preprocessed images, (N, 3, H, W).
        codes: skip codes such as ``('FFFF', 'TTTT')``.

    Returns:
        For each code the neck's outputs (P2, P3, …), each (N, C, H / stride, W / stride).

    Raises:
        UserError: a code that is not valid, or no adaptive-depth backbone.
    """
    backbone, detector = find_backbone(model), unwrap(model)
    feats = {}
    for skip in [SkipConfig.parse(code, backbone.letter_groups) for code in codes]:
        with backbone.using_skip(skip):
            feats[str(skip)] = tuple(detector.extract_feat(inputs))
    return feats
