"""One training run: a config, made safe, to checkpoints in its work folder."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, LOOPS, Registry, init_default_scope
from mmengine.runner import Runner, ValLoop
from torch import nn
from torch.utils.data import DataLoader

from ..config import choose_codes, require_weights
from ..datasets.images import name_unreadable
from ..datasets.preparation import prepare_data
from ..errors import UserError
from .failures import explain
from .preemption import shield_workers
from .resume import resume as resume_from

# By their names in default_hooks, where a config sets them otherwise, or None to leave one out.
SAFETY_HOOKS = dict(
    exact_resume='ExactResumeHook',
    finite_loss='FiniteLossHook',
    loss_scale='LossScaleHook',
    preemption='PreemptionHook',
)


def train(cfg: Config, resume: str | None = None, amp: bool = False, auto_scale_lr: bool = False) -> nn.Module:
    """Train as mmdet does, so that neither a kill, a full disk nor a loss that is not finite spoils what is done.

    Args:
        cfg: a config with a work folder; it is changed to that of the run.
        resume: a checkpoint to go on from, or ``auto`` for the latest in the work folder, if any.
        amp: automatic mixed precision.
        auto_scale_lr: scale the learning rate to the GPUs' total batch size.

    Returns:
        The model.

    Raises:
        UserError: for whatever a user can get wrong, a loss that is not finite, no room on the GPU or the disk.
        SystemExit: with code :data:`PREEMPTED`, after a signal and its checkpoint.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if amp:
        _use_amp(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, which {cfg.filename} does not set')
        cfg.auto_scale_lr.enable = True
    add_safety_hooks(cfg)
    if cfg.get('val_cfg') and _is(cfg.val_cfg.get('type'), ValLoop, LOOPS) and choose_codes(cfg, None):
        cfg.val_cfg.type = 'SubNetValLoop'
    if resume or cfg.get('resume'):
        resume_from(cfg, resume or cfg.get('load_from') or 'auto')
    require_weights(cfg)
    prepare_data(cfg, 'train', 'val')
    return _run(cfg)


def _use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise UserError('--amp needs a GPU, and torch sees none: train without it')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def add_safety_hooks(cfg: Config) -> None:
    """Add the hooks that a config does not name itself, and let mmengine's own CheckpointHook be the atomic one."""
    cfg.setdefault('custom_imports', dict(imports=['adn_mmdet']))  # so that mmdet's scripts read the dumped config
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))  # mmengine's default
    if hooks.checkpoint and _is(hooks.checkpoint.type, CheckpointHook, HOOKS):
        hooks.checkpoint.type = 'AtomicCheckpointHook'
    for name, hook in SAFETY_HOOKS.items():
        if hooks.setdefault(name, dict(type=hook)) is None:
            del hooks[name]  # mmengine takes None for its own names alone


def _is(kind: str | type | None, stock: type, registry: Registry) -> bool:
    """Whether a config's ``type``, a name or a class, is that class itself."""
    return (registry.get(kind) if isinstance(kind, str) else kind) is stock


class _Runner(Runner):
    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> DataLoader:
        return name_unreadable(shield_workers(Runner.build_dataloader(*args, **kwargs)))


def _run(cfg: Config) -> nn.Module:
    runner = None
    try:
        runner = _Runner.from_cfg(cfg)
        return runner.train()
    except (RuntimeError, OSError) as error:
        message = explain(error, runner.model if runner else None)
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        if runner:
            runner.call_hook('restore_handlers')
