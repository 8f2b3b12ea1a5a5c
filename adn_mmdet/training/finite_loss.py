"""FiniteLossHook: stops at the first loss that is not finite, before anything keeps what came of it."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from ..ranks import any_rank


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
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    images = ', '.join(str(sample.get('img_path')) for sample in samples or [])
    return (
        f'iteration {runner.iter + 1}: {faulty}, with {rates}, on the images {images}. No checkpoint was written: look '
        'at these images and their annotations, or lower the learning rate, and go on from the previous one (--resume)'
    )
