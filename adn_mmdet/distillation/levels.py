"""The pyramid levels that are compared: the outputs of a detector's neck, by index and by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.models.detectors import BaseDetector
from torch import nn

from ..errors import UserError


@dataclass(frozen=True)
class PyramidLevel:
    """One output: its index, its name by stride (``p2`` has stride 4), and whether it has a backbone stage's size."""

    index: int
    name: str
    has_stage: bool


def pyramid_module(detector: BaseDetector) -> nn.Module:
    """The module whose outputs are compared: the neck or, in a detector without one (Mask2Former), the backbone."""
    return detector.neck if getattr(detector, 'neck', None) is not None else detector.backbone


def pyramid_levels(detector: BaseDetector) -> list[PyramidLevel]:
    """The outputs of a detector's neck, or of its backbone, found by one pass over a blank image."""
    size = 256  # large enough that strides up to 256 can be told apart
    parameter = next(detector.parameters())
    blank = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    was_training = detector.training
    detector.eval()  # so that no running statistic learns from the blank image
    with torch.no_grad():
        stages = detector.backbone(blank)
        pyramid = pyramid_module(detector)
        outputs = stages if pyramid is detector.backbone else pyramid(stages)
    detector.train(was_training)
    stage_widths = {stage.shape[-1] for stage in stages}
    return [
        PyramidLevel(index, f'p{round(math.log2(size / output.shape[-1]))}', output.shape[-1] in stage_widths)
        for index, output in enumerate(outputs)
    ]


def choose_levels(found: list[PyramidLevel], indices: Sequence[int] | None) -> list[PyramidLevel]:
    """The levels of ``indices``; of None those with a backbone stage behind them.

    Raises:
        UserError: an index without a level; says which there are.
    """
    if indices is None:
        return [level for level in found if level.has_stage]
    if not set(indices) <= set(range(len(found))):
        existing = ', '.join(f'{level.index} ({level.name})' for level in found)
        raise UserError(f'levels should be among the outputs {existing}, but got {list(indices)}')
    return [found[index] for index in indices]
