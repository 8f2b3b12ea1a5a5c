"""LossScaleHook: counts the steps that mixed precision skips, and stops when no step succeeds any more."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError

MIN_SCALE = 1.0  # below it gradients overflow float16 even where they are not scaled up at all


@HOOKS.register_module()
class LossScaleHook(Hook):
    """Log ``amp_scale`` and ``amp_skipped_steps`` of a dynamic loss scale (``AmpOptimWrapper``).

    Raises:
        UserError: the scale fell below :data:`MIN_SCALE`; from its start of 65536 that takes 17 skipped steps.
    """

    priority = 'ABOVE_NORMAL'  # before LoggerHook

    def before_train(self, runner: Runner) -> None:
        """Find the scaler, as it was resumed."""
        self.scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        self.scale = self.scaler.get_scale() if self.scaler else 0.0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """A scale that was lowered is a step that was skipped."""
        if self.scaler is None:
            return
        before, self.scale = self.scale, self.scaler.get_scale()
        skipped = runner.message_hub.get_info('amp_skipped_steps', 0) + (self.scale < before)
        runner.message_hub.update_info('amp_skipped_steps', skipped)  # resumed with the checkpoint
        runner.message_hub.update_scalar('train/amp_skipped_steps', skipped)
        runner.message_hub.update_scalar('train/amp_scale', self.scale)
        if self.scale < MIN_SCALE:
            raise UserError(
                f'iteration {runner.iter + 1}: the loss scale of mixed precision fell to {self.scale:g} after '
                f'{skipped} skipped steps: lower the learning rate, use bfloat16 (--cfg-options '
                'optim_wrapper.dtype=bfloat16), or train without --amp'
            )
