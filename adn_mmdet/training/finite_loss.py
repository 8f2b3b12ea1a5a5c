"""Stops at numbers that are not finite: FiniteLossHook at the first such loss, LossScaleHook when no step succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from ..ranks import any_rank

MIN_SCALE = 1.0  # below it gradients overflow float16 even where they are not scaled up at all


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop all ranks in an iteration whose loss is NaN or infinite on any of them, and save no weights that are.

    It needs no interval: mmengine reads every loss in every iteration anyway. With mixed precision as well: lowering
    the scale mends overflows of the backward pass, not a loss, nor the running statistics that were fed with it.

    Raises:
        UserError: names the iteration, what is not finite, the images of the batch and the learning rate.
    """

    priority = 'HIGH'  # before EMAHook and CheckpointHook

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at the total loss; NaN and infinity of any part end up there."""
        losses = outputs or {}
        fault = None if _is_finite(losses.get('loss', 0.0)) else _describe(runner, data_batch, losses)
        if any_rank(fault is not None):
            raise UserError(next(filter(None, all_gather_object(fault))))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Look at the weights: a gradient may be NaN where the loss was not."""
        faulty = [name for name, parameter in runner.model.named_parameters() if not _is_finite(parameter)]
        if faulty:
            raise UserError(
                f'{len(faulty)} weights are not finite (the first is {faulty[0]}) although the losses were: no '
                'checkpoint was written; go on from the previous one (--resume), with a lower learning rate or '
                'clipped gradients'
            )


def _is_finite(values: Any) -> bool:
    return bool(torch.as_tensor(values).isfinite().all())


def _describe(runner: Runner, data_batch: Any, losses: dict[str, Any]) -> str:
    faulty = ', '.join(
        f'{name} = {torch.as_tensor(value).item():g}' for name, value in losses.items() if not _is_finite(value)
    )
    rates = ', '.join(f'{name} = {values[0]:g}' for name, values in runner.optim_wrapper.get_lr().items())
    paths = _image_paths(data_batch.get('data_samples')) if isinstance(data_batch, dict) else []
    images = f', on the images {", ".join(paths)}' if paths else ''
    look = 'look at these images and their annotations' if paths else 'look at the data'
    return (
        f'iteration {runner.iter + 1}: {faulty}, with {rates}{images}. No checkpoint was written: {look}, or lower '
        'the learning rate, and go on from the previous one (--resume)'
    )


def _image_paths(samples: Any) -> list[str]:
    """Of data samples: a list, or a dict of lists by branch; other detectors have tensors there, which have none."""
    if isinstance(samples, Mapping):
        samples = list(samples.values())
    if isinstance(samples, (list, tuple)):
        return [path for sample in samples for path in _image_paths(sample)]
    path = getattr(samples, 'img_path', None)
    return [str(path)] if path else []


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
