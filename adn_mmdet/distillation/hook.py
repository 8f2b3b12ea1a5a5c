"""SkipAwareDistillationHook: puts self-distillation on a detector for the length of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from .self_distillation import SelfDistillation, check_settings


@HOOKS.register_module()
class SkipAwareDistillationHook(Hook):
    """Train super-net and base-net of a stock detector together (arXiv 2312.16392, Algorithm 1).

    What it adds to the loss, and what it logs, is written at :class:`SelfDistillation`. It works on any detector with
    an :class:`AdaptiveDepthBackbone` and a neck. Without it the detector trains as usual at its stored skip.

    Args:
        alpha: the super-net's share of the loss, 0 to 1.
        gt_weight: weight of the base-net's own task loss; with 0 the base-net runs backbone and neck only.
        kd_weight: weight of the feature loss; 0 is joint training without feature distillation.
        prediction_weight: weight of the KL between predictions; 0 is detection as the authors train it.
        feature: ``'gap_channel'`` (the authors'), ``'channel'``, ``'spatial'`` or ``'l2'``, or one of these on
            standardised features, ``'std_gap_channel'`` …; see ``distillation/losses.py``.
        temperature: T of the features' softmax; their loss is multiplied by T².
        levels: indices of the neck's outputs to distil; None takes those with a backbone stage behind them.
        warmup_iters: iterations over which both distillation weights rise linearly from 0.
        mode: ``'joint'``, or ``'sequential'`` (the paper's footnote 1): the same gradients, less memory.

    Raises:
        UserError: for an argument out of its range; at the start of the training, for a level that does not exist or
            a detector that cannot be distilled.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        prediction_weight: float = 0.0,
        feature: str = 'gap_channel',
        temperature: float = 1.0,
        levels: Sequence[int] | None = None,
        warmup_iters: int = 0,
        mode: str = 'joint',
    ) -> None:
        if warmup_iters < 0:
            raise UserError(f'warmup_iters should not be negative, but got {warmup_iters}')
        check_settings(alpha, gt_weight, kd_weight, prediction_weight, feature, temperature, mode)
        self.warmup_iters = warmup_iters
        self.settings: dict[str, Any] = dict(
            alpha=alpha,
            gt_weight=gt_weight,
            kd_weight=kd_weight,
            prediction_weight=prediction_weight,
            feature=feature,
            temperature=temperature,
            levels=levels,
            mode=mode,
        )

    def before_train(self, runner: Runner) -> None:
        """Attach to the detector, after EMAHook (before_run) has made its copy."""
        self.distillation = SelfDistillation(runner.model, **self.settings)
        self.distillation.attach()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Raise the distillation's weights during the warm-up; follow the gradient scaler's loss scale."""
        if self.warmup_iters:
            self.distillation.kd_ramp = min(1.0, runner.iter / self.warmup_iters)
        if (scaler := getattr(runner.optim_wrapper, 'loss_scaler', None)) is not None:
            self.distillation.loss_scale = scaler.get_scale()

    def after_train(self, runner: Runner) -> None:
        """Leave a plain detector."""
        self.distillation.detach()
