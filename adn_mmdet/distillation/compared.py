"""What is compared of super-net and base-net: a detector's pyramid levels, or the stages of a classifier's backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.models.layers import DetrTransformerEncoder
from torch import Tensor, nn

from ..backbones.adaptive_depth import find_backbone
from ..errors import UserError

#: Of a module's (inputs, output), the tensors that are compared.
Pick = Callable[[tuple[Any, ...], Any], tuple[Tensor, ...]]
Picked = dict[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Level:
    """One output: its index, its name (``p2`` has stride 4), and whether it is compared where nobody says which."""

    index: int
    name: str
    has_stage: bool = True


class Compared(Protocol):
    """Features of a model that super-net and base-net are compared by.

    Attributes:
        found: all levels that there are.
    """

    found: list[Level]

    def picks(self, levels: Sequence[Level]) -> dict[nn.Module, Pick]:
        """The modules whose calls :meth:`features` reads, and what of each."""

    def features(self, calls: Picked, levels: Sequence[Level]) -> list[Tensor]:
        """Of what :meth:`picks` picked in one pass, a tensor (N, C, H, W) a level."""

    def run(self, inputs: Tensor) -> Any:
        """Run what is compared alone, without truth, on preprocessed images (N, 3, H, W)."""


class Pyramid:
    """The outputs of a detector's neck or, in a detector without one (Mask2Former), of its backbone."""

    def __init__(self, detector: BaseDetector) -> None:
        self.module, self.found = pyramid_module(detector), pyramid_levels(detector)
        self.run = detector.extract_feat

    def picks(self, levels: Sequence[Level]) -> dict[nn.Module, Pick]:
        """All outputs of that module, which the heads are run on as well."""
        return {self.module: lambda _, outputs: tuple(outputs)}

    def features(self, calls: Picked, levels: Sequence[Level]) -> list[Tensor]:
        """The outputs of some levels, each (N, C, H, W)."""
        return [calls[self.module][level.index] for level in levels]


class PyramidAndMemory(Pyramid):
    """A pyramid, and the memory of the transformer encoder that it goes through, level ``memory``.

    Args:
        detector: a DETR or Mask2Former, whose neck's outputs know nothing of what its encoder skips.
        encoder: returns tokens, (N, L, C).
    """

    def __init__(self, detector: BaseDetector, encoder: nn.Module) -> None:
        super().__init__(detector)
        self.encoder, self.memory = encoder, Level(len(self.found), 'memory')
        self.found = [*self.found, self.memory]

    def picks(self, levels: Sequence[Level]) -> dict[nn.Module, Pick]:
        """The pyramid's outputs, and the memory as a map of one row, (N, C, L, 1)."""
        return super().picks(levels) | {self.encoder: lambda _, tokens: (tokens.transpose(1, 2).unsqueeze(-1),)}

    def features(self, calls: Picked, levels: Sequence[Level]) -> list[Tensor]:
        """The outputs of some levels, each (N, C, H, W)."""
        return [calls[self.encoder][0] if level == self.memory else calls[self.module][level.index] for level in levels]


class Stages:
    """The outputs of the stages of an image classifier's backbone: h^s of Algorithm 1.

    They are taken where they are computed, not by ``out_indices``, which add norms that nothing else uses.

    Args:
        classifier: mmpretrain's ImageClassifier, or what has its ``extract_feat`` and a ``head`` that returns logits.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier, self.stages = classifier, list(classifier.backbone.stages)
        self.found = [Level(index, f'stage{index + 1}') for index in range(len(self.stages))]

    def picks(self, levels: Sequence[Level]) -> dict[nn.Module, Pick]:
        """The stages of some levels."""
        return {self.stages[level.index]: _stage_output for level in levels}

    def features(self, calls: Picked, levels: Sequence[Level]) -> list[Tensor]:
        """The outputs of some stages, each (N, C, H, W); of a transformer's tokens (N, C, tokens, 1)."""
        return [calls[self.stages[level.index]][0] for level in levels]

    def run(self, inputs: Tensor) -> Tensor:
        """Run the classifier to its logits, (N, classes)."""
        return self.classifier.head(self.classifier.extract_feat(inputs))


def _stage_output(_: tuple[Any, ...], feat: Tensor) -> tuple[Tensor]:
    """A stage's output as a map; of tokens it is (N, L, C)."""
    return (feat if feat.dim() == 4 else feat.transpose(1, 2).unsqueeze(-1),)


def compared_in(model: nn.Module) -> Compared:
    """What is compared in a model.

    Raises:
        UserError: it is neither a detector nor an image classifier.
    """
    if isinstance(model, BaseDetector):
        encoders = [
            part.module for part in find_backbone(model).parts if isinstance(part.module, DetrTransformerEncoder)
        ]
        return PyramidAndMemory(model, encoders[0]) if encoders else Pyramid(model)
    if hasattr(model, 'extract_feat') and isinstance(getattr(model, 'head', None), nn.Module):
        return Stages(model)
    raise UserError(
        f"{type(model).__name__} cannot be distilled: it should be one of mmdet's detectors or mmpretrain's "
        'ImageClassifier with a head'
    )


def pyramid_module(detector: BaseDetector) -> nn.Module:
    """The module whose outputs are compared: the neck or, in a detector without one (Mask2Former), the backbone."""
    return detector.neck if getattr(detector, 'neck', None) is not None else detector.backbone


def pyramid_levels(detector: BaseDetector) -> list[Level]:
    """The outputs of a detector's neck, or of its backbone, found by one pass over a blank image.

    Those of a stage's size (``has_stage``) are compared where nobody says which.
    """
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
        Level(index, f'p{round(math.log2(size / output.shape[-1]))}', output.shape[-1] in stage_widths)
        for index, output in enumerate(outputs)
    ]


def choose_levels(found: list[Level], indices: Sequence[int] | None) -> list[Level]:
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
