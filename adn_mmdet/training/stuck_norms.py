"""StuckNormsHook: says when the norms of skipped stages learn no statistics of their own."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones.adaptive_depth import find_backbone
from ..skip_config import SkipConfig


@HOOKS.register_module()
class StuckNormsHook(Hook):
    """Warn at a training's first evaluation of skip-aware norms whose statistics have not moved but should have.

    Those are the norms that the training does not freeze, and, where weights without skip-aware norms were loaded, all
    of them: a clone that is frozen never fits. :class:`SubNetValLoop` adds this hook.
    """

    def __init__(self) -> None:
        self.means: dict[_BatchNorm, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Note the statistics, after weights were loaded."""
        backbone = find_backbone(runner.model)
        self.means = {
            norm: norm.running_mean.clone()
            for norm in backbone.idle_norms(SkipConfig.super_net(backbone.letter_groups))
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None
        }

    def before_val(self, runner: Runner) -> None:
        """Compare, once. The model is still in training mode, in which a norm that evaluates is frozen."""
        means, self.means = self.means, {}
        cloned = find_backbone(runner.model).num_untrained_norms
        stuck = sum(
            torch.equal(norm.get_buffer('running_mean'), mean)
            for norm, mean in means.items()
            if cloned or norm.training
        )
        if stuck:
            runner.logger.warning(
                f'the statistics of {stuck} of {len(means)} skip-aware norms have not moved in this training, so that '
                'skipped sub-networks run on those of others: train with norm_eval=False, frozen_stages=-1 and '
                'SkipAwareDistillationHook, or recalibrate the checkpoint (tools/recalibrate.py)'
            )
