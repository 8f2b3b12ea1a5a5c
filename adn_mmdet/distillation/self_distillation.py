"""Skip-aware self-distillation of a detector: the two passes and the one loss dict (arXiv 2312.16392, Algorithm 1).

It knows detectors, not runners: :class:`SelfDistillation` takes the place of a detector's ``forward`` while attached,
so that both passes happen inside one forward and are followed by one backward. Distributed training, mixed precision,
gradient accumulation and clipping therefore stay MMEngine's own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn

from ..backbones.adaptive_depth import find_backbone
from ..errors import UserError
from ..features import unwrap
from ..skip_config import SkipConfig
from .losses import FEATURE_KLS

Losses = dict[str, Any]
Feats = tuple[Tensor, ...]


@dataclass(frozen=True)
class PyramidLevel:
    """One output of the neck: its index, its name by stride (``p2`` has stride 4), and whether a stage is behind it."""

    index: int
    name: str
    has_stage: bool


class SelfDistillation:
    """The training forward of a detector that runs super-net and base-net on the same batch.

    loss = α·L(super) + (1−α)·[gt_weight·L(base) + kd_weight·T²·Σ_level KL(super ‖ base)]

    Calling it with ``mode='loss'`` gives the dict below, whose entries are weighted already: their sum is the loss. Any
    other mode is the detector's own forward.

    ==================  =============================================================================================
    ``super.loss_*``    the detector's losses at the super-net, times α
    ``base.loss_*``     the same at the base-net, times (1−α)·gt_weight; absent with ``gt_weight=0``, where the
                        base-net runs backbone and neck only
    ``kd.loss_p2`` …    the KL of a pyramid level, named by its stride, times (1−α)·kd_weight·T²·kd_ramp; absent with
                        ``kd_weight=0``
    ``super.acc`` …     whatever a detector reports without "loss" in its name, as it is
    ==================  =============================================================================================

    Args:
        detector: a detector, or a wrapper of one, with an adaptive-depth backbone and a neck.
        alpha: the super-net's share α, 0 to 1.
        gt_weight: weight of the base-net's own task loss.
        kd_weight: weight of the feature KL.
        feature: which KL, one of ``FEATURE_KLS``.
        temperature: T of the KL's softmax.
        levels: indices of the neck's outputs to distil; None takes those with a backbone stage behind them.

    Raises:
        UserError: an argument out of its range, a level that does not exist, or a detector that cannot be distilled.
    """

    def __init__(
        self,
        detector: nn.Module,
        alpha: float = 0.5,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        feature: str = 'gap_channel',
        temperature: float = 1.0,
        levels: Sequence[int] | None = None,
    ) -> None:
        check_settings(alpha, gt_weight, kd_weight, feature, temperature)
        self.detector = unwrap(detector)
        self.backbone = find_backbone(self.detector)
        self.super_net = SkipConfig.super_net(self.backbone.num_stages)
        self.base_net = SkipConfig.base_net(self.backbone.num_stages)
        self.alpha, self.gt_weight, self.kd_weight = alpha, gt_weight, kd_weight
        self.feature, self.temperature = feature, temperature
        self.levels = _choose_levels(pyramid_levels(self.detector), levels)
        #: Share of ``kd_weight`` that is in force, 0 to 1; the hook raises it during its warm-up.
        self.kd_ramp = 1.0

    def attach(self) -> None:
        """Put this in the place of the detector's forward."""
        self.detector.forward = self

    def detach(self) -> None:
        """Give the detector its own forward back."""
        self.detector.__dict__.pop('forward', None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The detector's ``forward``; see the class for what ``mode='loss'`` gives."""
        stock_forward = type(self.detector).forward
        bound = inspect.signature(stock_forward).bind(self.detector, *args, **kwargs)
        bound.apply_defaults()
        if bound.arguments['mode'] != 'loss':
            return stock_forward(*bound.args, **bound.kwargs)
        super_losses, super_feats = self._task_pass(bound, self.super_net)
        if self.gt_weight:
            base_losses, base_feats = self._task_pass(bound, self.base_net)
        else:
            with self.backbone.using_skip(self.base_net):
                base_losses, base_feats = {}, self.detector.extract_feat(bound.arguments['inputs'])
        return {
            **_weighted(super_losses, 'super', self.alpha),
            **_weighted(base_losses, 'base', (1 - self.alpha) * self.gt_weight),
            **self._kd_losses(super_feats, base_feats),
        }

    def _task_pass(self, bound: inspect.BoundArguments, skip: SkipConfig) -> tuple[Losses, Feats]:
        """The detector's own losses and neck outputs at ``skip``."""
        with self.backbone.using_skip(skip), _caught_outputs(self.detector.neck) as outputs:
            losses = type(self.detector).forward(*bound.args, **bound.kwargs)
        return losses, outputs[0]

    def _kd_losses(self, super_feats: Feats, base_feats: Feats) -> Losses:
        if not self.kd_weight:
            return {}
        kl = FEATURE_KLS[self.feature]
        weight = (1 - self.alpha) * self.kd_weight * self.kd_ramp * self.temperature**2
        return {
            f'kd.loss_{level.name}': weight * kl(super_feats[level.index], base_feats[level.index], self.temperature)
            for level in self.levels
        }


def pyramid_levels(detector: BaseDetector) -> list[PyramidLevel]:
    """The outputs of a detector's neck, found by one pass over a blank image.

    Raises:
        UserError: the detector has no neck.
    """
    if getattr(detector, 'neck', None) is None:
        raise UserError(
            f'{type(detector).__name__} has no neck: the distillation compares the outputs of one, '
            'such as dict(type="FPN")'
        )
    size = 256  # large enough that strides up to 256 can be told apart
    parameter = next(detector.parameters())
    blank = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    was_training = detector.training
    detector.eval()  # so that no running statistic learns from the blank image
    with torch.no_grad():
        stages = detector.backbone(blank)
        outputs = detector.neck(stages)
    detector.train(was_training)
    stage_widths = {stage.shape[-1] for stage in stages}
    return [
        PyramidLevel(index, f'p{round(math.log2(size / output.shape[-1]))}', output.shape[-1] in stage_widths)
        for index, output in enumerate(outputs)
    ]


def _choose_levels(found: list[PyramidLevel], indices: Sequence[int] | None) -> list[PyramidLevel]:
    if indices is None:
        return [level for level in found if level.has_stage]
    if not indices or not set(indices) <= set(range(len(found))):
        existing = ', '.join(f'{level.index} ({level.name})' for level in found)
        raise UserError(f'levels should be indices of the neck outputs {existing}, but got {list(indices)}')
    return [found[index] for index in indices]


def check_settings(alpha: float, gt_weight: float, kd_weight: float, feature: str, temperature: float) -> None:
    """Raise a UserError for a setting of :class:`SelfDistillation` that is out of its range."""
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha should be the super-net's share, 0 to 1, but got {alpha}")
    if gt_weight < 0 or kd_weight < 0 or gt_weight == kd_weight == 0:
        raise UserError(
            'gt_weight and kd_weight should not be negative nor both 0, which leaves the base-net untrained, '
            f'but got {gt_weight} and {kd_weight}'
        )
    if feature not in FEATURE_KLS:
        raise UserError(f'feature should be one of {", ".join(FEATURE_KLS)}, but got {feature!r}')
    if temperature <= 0:
        raise UserError(f'temperature should be positive, but got {temperature}')


def _weighted(losses: Losses, net: str, weight: float) -> Losses:
    """Prefix every entry with ``net``, and weight those that mmdet's parse_losses adds up ("loss" in the name)."""

    def scale(value: Any) -> Any:
        return [weight * part for part in value] if isinstance(value, (list, tuple)) else weight * value

    return {f'{net}.{name}': scale(value) if 'loss' in name else value for name, value in losses.items()}


@contextmanager
def _caught_outputs(module: nn.Module) -> Iterator[list[Any]]:
    """Collect what ``module`` returns inside the ``with`` block; nothing is kept on it."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
