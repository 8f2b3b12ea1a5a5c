"""SkipAwareDistillationHook: puts self-distillation on a model for the length of a training."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..backbones.adaptive_depth import find_backbone
from ..errors import UserError
from ..skip_config import SkipConfig
from .self_distillation import SelfDistillation
from .settings import DistillationSettings


@HOOKS.register_module()
class SkipAwareDistillationHook(Hook):
    """Train super-net and base-net of a stock detector or classifier together (arXiv 2312.16392, Algorithm 1).

    What it adds to the loss, and what it logs, is written at :class:`SelfDistillation`. It works on any detector, and
    on mmpretrain's ImageClassifier, with an :class:`AdaptiveDepthBackbone`. Without it the model trains as usual at its
    stored skip.

    Args:
        **settings: those of :class:`DistillationSettings`, by name.

    Raises:
        UserError: for a setting that there is not or that is out of its range; at the start of the training, for a
            level that does not exist, a setting that makes no sense for the model, a model that cannot be distilled, or
            a second hook of this kind.
    """

    __signature__ = inspect.signature(DistillationSettings)

    def __init__(self, **settings: Any) -> None:
        names = list(self.__signature__.parameters)
        for name in settings.keys() - names:
            nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
            raise UserError(
                f'SkipAwareDistillationHook has no setting {name!r}; did you mean {nearest!r}? '
                f'Its settings are {", ".join(names)}'
            )
        self.settings = DistillationSettings(**settings)
        self.distillation: SelfDistillation | None = None

    def before_train(self, runner: Runner) -> None:
        """Attach to the detector, after EMAHook (before_run) has made its copy; warn of norms that cannot learn."""
        if self.distillation:  # of a training that was interrupted
            self.distillation.detach()
        self.distillation = SelfDistillation(runner.model, self.settings)
        self.distillation.attach()
        if getattr(self.distillation.compared, 'module', None) is self.distillation.backbone:
            levels = ', '.join(f'kd.loss_{level.name}' for level in self.distillation.levels)
            runner.logger.info(f'There is no neck: the outputs of the backbone are distilled ({levels})')
        cloned = self.distillation.backbone.num_untrained_norms
        if cloned and (frozen := frozen_skip_norms(self.distillation.detector)):
            runner.logger.warning(
                f'{len(frozen)} of {cloned} skip-aware norms were cloned from weights that have none and are frozen in '
                'this training, so that skipped sub-networks stay untrained: set norm_eval=False, frozen_stages=-1 and '
                'norm_cfg.requires_grad=True in the backbone, or start from ADN weights'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Raise the distillation's weights during the warm-up; follow the gradient scaler's loss scale."""
        assert self.distillation is not None
        if self.settings.warmup_iters:
            self.distillation.kd_ramp = min(1.0, runner.iter / self.settings.warmup_iters)
        if (scaler := getattr(runner.optim_wrapper, 'loss_scaler', None)) is not None:
            self.distillation.loss_scale = scaler.get_scale()

    def after_train(self, runner: Runner) -> None:
        """Leave a plain detector."""
        assert self.distillation is not None
        self.distillation.detach()


def frozen_skip_norms(model: nn.Module) -> list[nn.Module]:
    """The norms of the second set whose weights or running statistics stay as they are while ``model`` trains."""
    mode, backbone = model.training, find_backbone(model)
    model.train()  # in which mmdet's norm_eval and frozen_stages take effect
    found = [
        norm
        for norm in backbone.idle_norms(SkipConfig.super_net(backbone.letter_groups))
        if not all(parameter.requires_grad for parameter in norm.parameters())
        or (getattr(norm, 'running_mean', None) is not None and not norm.training)
    ]
    model.train(mode)
    return found
