"""One training run: a config, made safe, to checkpoints in its work folder."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, LOOPS, VISBACKENDS, Registry, init_default_scope
from mmengine.runner import ValLoop
from mmengine.visualization import MLflowVisBackend
from torch import nn

from ..config import choose_codes, require_weights
from ..datasets.parsed import parsed_once
from ..datasets.preparation import prepare_data
from ..errors import UserError
from ..ranks import join_ranks
from .failures import explain
from .lock import only_training_in
from .mlflow_backend import MLflowBackend
from .resume import Found
from .resume import resume as resume_from
from .runner import SafeRunner

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
        UserError: for whatever a user can get wrong, another training in the work folder, a checkpoint that does not
            fit, a loss that is not finite, no room on the GPU or the disk.
        SystemExit: with code :data:`PREEMPTED`, after a signal and its checkpoint.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if amp:
        _use_amp(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, which {cfg.filename} does not set')
        cfg.auto_scale_lr.enable = True
    if cfg.get('resume') and cfg.get('load_from') and not resume:  # as a training that was resumed dumps it
        raise UserError(
            f'the config says resume=True with load_from={cfg.load_from}: give --resume {cfg.load_from} to go on from '
            'there, or --cfg-options resume=False load_from=None for a new training'
        )
    replaced = make_safe(cfg)
    join_ranks(cfg)
    with only_training_in(cfg.work_dir):
        found = resume_from(cfg, resume or 'auto') if resume or cfg.get('resume') else None
        require_weights(cfg)
        return _run(cfg, found, replaced)


def _use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise UserError('--amp needs a GPU, and torch sees none: train without it')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def make_safe(cfg: Config) -> str:
    """Put what is safer in the place of mmengine's own, and add the hooks that a config does not name itself.

    Returns:
        One line that says so.
    """
    cfg.setdefault('custom_imports', dict(imports=['adn_mmdet']))  # so that mmdet's scripts read the dumped config
    cfg.setdefault('default_hooks', {})
    hooks, changes = cfg.default_hooks, []
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))  # mmengine's default
    if hooks.checkpoint and _is(hooks.checkpoint.type, CheckpointHook, HOOKS):
        hooks.checkpoint.type = 'AtomicCheckpointHook'
        changes.append('CheckpointHook by AtomicCheckpointHook')
    val_cfg = cfg.get('val_cfg')  # mmpretrain's names no type
    if val_cfg is not None and _is(val_cfg.get('type', 'ValLoop'), ValLoop, LOOPS) and choose_codes(cfg, None):
        cfg.val_cfg.type = 'SubNetValLoop'
        changes.append('ValLoop by SubNetValLoop')
    for backend in (cfg.get('visualizer') or {}).get('vis_backends') or ():
        if _is(backend.get('type'), MLflowVisBackend, VISBACKENDS):
            backend['type'] = MLflowBackend.__name__
            changes.append('MLflowVisBackend by MLflowBackend')
    added = [hook for name, hook in SAFETY_HOOKS.items() if name not in hooks]
    for name, hook in SAFETY_HOOKS.items():
        if hooks.setdefault(name, dict(type=hook)) is None:
            del hooks[name]  # mmengine takes None for its own names alone
    parts = (('replaced', changes), ('added', added))
    return '; '.join(f'{what} in the config: {", ".join(names)}' for what, names in parts if names)


def _is(kind: str | type | None, stock: type, registry: Registry) -> bool:
    """Whether a config's ``type``, a name or a class, is that class itself."""
    return (registry.get(kind) if isinstance(kind, str) else kind) is stock


def _run(cfg: Config, found: Found | None, replaced: str) -> nn.Module:
    runner = None
    if found:
        cfg.load_from = found.path
    try:
        with parsed_once():  # by the check, the data sets and the metrics, which are built here
            prepare_data(cfg, 'train', 'val')
            runner = SafeRunner.from_cfg(cfg)
            runner.train_loop, runner.val_loop  # noqa: B018
        if replaced:
            runner.logger.info(replaced)
        runner.found = found
        return runner.train()
    except (RuntimeError, OSError) as error:
        message = explain(error, runner.model if runner else None)
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        if runner:
            runner.call_hook('restore_handlers')
