"""DistillationSettings: how a training distils, checked once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from .losses import FEATURE_LOSSES

MODES = ('joint', 'sequential')


@dataclass(frozen=True)
class DistillationSettings:
    """The settings of :class:`SkipAwareDistillationHook`; :class:`SelfDistillation` has the formula that they enter.

    Args:
        alpha: the super-net's share of the loss, 0 to 1.
        gt_weight: weight of the base-net's own task loss; with 0, as Algorithm 1 is printed and as the authors train
            classifiers, the base-net has no label, and a detector's runs without heads.
        kd_weight: weight of the feature loss; 0 is joint training without feature distillation.
        prediction_weight: weight of the KL between predictions, of a classifier between its logits; 0 is detection as
            the authors train it.
        feature: ``'gap_channel'`` (the authors'), ``'channel'``, ``'spatial'`` or ``'l2'``, or one of these on
            standardised features, ``'std_gap_channel'`` …; see ``distillation/losses.py``.
        temperature: T of the features' softmax; their loss is multiplied by T².
        levels: indices of what to distil: a detector's neck outputs (the backbone's, where there is no neck), of which
            None takes those with a backbone stage behind them; a classifier's stages, of which None takes all.
        warmup_iters: iterations over which both distillation weights rise linearly from 0.
        mode: ``'joint'`` holds both passes' activations until the one backward; ``'sequential'`` goes back through
            the super-net before the base-net's pass begins (the paper's footnote 1): the same gradients, less memory.
        top_k: of a classifier, how many logits of an image ``prediction_weight`` compares, those of the super-net's
            likeliest classes, renormalised; 500 is the authors' on ImageNet, None takes all.

    Raises:
        UserError: a setting of the wrong type or out of its range.
    """

    alpha: float = 0.5
    gt_weight: float = 1.0
    kd_weight: float = 1.0
    prediction_weight: float = 0.0
    feature: str = 'gap_channel'
    temperature: float = 1.0
    levels: Sequence[int] | None = None
    warmup_iters: int = 0
    mode: str = 'joint'
    top_k: int | None = None

    def __post_init__(self) -> None:
        """Check each setting, then what they are together."""
        for name in ('alpha', 'gt_weight', 'kd_weight', 'prediction_weight', 'temperature'):
            if not _is_finite(value := getattr(self, name)):
                raise UserError(f'{name} should be a finite number, but got {value!r}')
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha should be the super-net's share, 0 to 1, but got {self.alpha}")
        weights = (self.gt_weight, self.kd_weight, self.prediction_weight)
        if min(weights) < 0 or not any(weights):
            raise UserError(
                'gt_weight, kd_weight and prediction_weight should not be negative nor all 0, which leaves the '
                f'base-net untrained, but got {", ".join(map(str, weights))}'
            )
        if self.temperature <= 0:
            raise UserError(f'temperature should be positive, but got {self.temperature}')
        for name, valid in (('feature', FEATURE_LOSSES), ('mode', MODES)):
            if (value := getattr(self, name)) not in tuple(valid):
                raise UserError(f'{name} should be one of {", ".join(valid)}, but got {value!r}')
        if not _is_count(self.warmup_iters):
            raise UserError(f'warmup_iters should be a whole number, 0 or more, but got {self.warmup_iters!r}')
        if (top_k := self.top_k) is not None:
            if not _is_count(top_k) or top_k < 2:
                raise UserError(f'top_k should be a whole number of classes, 2 or more, but got {top_k!r}')
            if not self.prediction_weight:
                raise UserError(f'top_k={top_k} is of the predictions, whose prediction_weight is 0: set both or none')
        if (levels := self.levels) is not None:
            are_counts = isinstance(levels, (list, tuple)) and all(map(_is_count, levels))
            if not are_counts or not 0 < len(levels) == len(set(levels)):
                given = list(levels) if isinstance(levels, tuple) else levels
                raise UserError(f'levels should be indices of outputs, each once, such as [0, 1], but got {given!r}')


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
