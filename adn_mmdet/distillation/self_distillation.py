"""Skip-aware self-distillation of a detector: the two passes and the one loss dict (arXiv 2312.16392, Algorithm 1).

It knows detectors, not runners: :class:`SelfDistillation` takes the place of a detector's ``forward`` while attached,
so that both passes happen inside one forward and are followed by one backward. Distributed training, mixed precision,
gradient accumulation and clipping therefore stay MMEngine's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..backbones.adaptive_depth import find_backbone
from ..backbones.features import unwrap
from ..errors import UserError
from ..skip_config import SkipConfig
from .calls import Calls, caught_calls
from .levels import choose_levels, pyramid_levels
from .losses import FEATURE_LOSSES
from .predictions import PredictionKL
from .sequential import backpropagated, total_loss

Losses = dict[str, Any]
Feats = tuple[Tensor, ...]


class SelfDistillation:
    """The training forward of a detector that runs super-net and base-net on the same batch.

    loss = α·L(super) + (1−α)·[gt_weight·L(base) + kd_weight·T²·Σ_level KL(super ‖ base)
    + prediction_weight·Σ KL(predictions)]

    Calling it with ``mode='loss'`` gives the dict below, whose entries are weighted already: their sum is the loss. Any
    other mode is the detector's own forward.

    ==================  =============================================================================================
    ``super.loss_*``    the detector's losses at the super-net, times α
    ``base.loss_*``     the same at the base-net, times (1−α)·gt_weight; absent with ``gt_weight=0``, where the
                        base-net runs backbone and neck only
    ``kd.loss_p2`` …    the feature loss of a pyramid level, named by its stride, times (1−α)·kd_weight·T²·kd_ramp;
                        absent with ``kd_weight=0``
    ``kd.loss_cls`` …   the losses of :class:`PredictionKL`, times (1−α)·prediction_weight·kd_ramp; absent with
                        ``prediction_weight=0``
    ``kd.to_task``      the sum of all ``kd.loss_*`` over that of all ``super.loss_*`` and ``base.loss_*``; no loss
    ``super.acc`` …     whatever a detector reports without "loss" in its name, as it is
    ==================  =============================================================================================

    Args:
        detector: a detector, or a wrapper of one, with an adaptive-depth backbone and a neck.
        alpha: the super-net's share α, 0 to 1.
        gt_weight: weight of the base-net's own task loss.
        kd_weight: weight of the feature loss.
        prediction_weight: weight of the KL between predictions.
        feature: which feature loss, one of ``FEATURE_LOSSES``.
        temperature: T of the feature loss.
        levels: indices of the neck's outputs to distil; None takes those with a backbone stage behind them.
        mode: ``'joint'`` holds both passes' activations until the one backward; ``'sequential'`` goes back through
            the super-net before the base-net's pass begins (the paper's footnote 1): the same gradients, less memory.

    Raises:
        UserError: an argument out of its range, a level that does not exist, or a detector that cannot be distilled.
    """

    def __init__(
        self,
        detector: nn.Module,
        alpha: float = 0.5,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        prediction_weight: float = 0.0,
        feature: str = 'gap_channel',
        temperature: float = 1.0,
        levels: Sequence[int] | None = None,
        mode: str = 'joint',
    ) -> None:
        check_settings(alpha, gt_weight, kd_weight, prediction_weight, feature, temperature, mode)
        self.detector = unwrap(detector)
        self.backbone = find_backbone(self.detector)
        self.super_net = SkipConfig.super_net(self.backbone.num_stages)
        self.base_net = SkipConfig.base_net(self.backbone.num_stages)
        self.alpha, self.gt_weight, self.kd_weight = alpha, gt_weight, kd_weight
        self.prediction_weight = prediction_weight
        self.feature, self.temperature, self.mode = feature, temperature, mode
        self.levels = choose_levels(pyramid_levels(self.detector), levels)
        self.prediction_kl = PredictionKL(self.detector) if prediction_weight else None
        #: Share of the distillation's weights that is in force, 0 to 1; the hook raises it during its warm-up.
        self.kd_ramp = 1.0
        #: What a gradient scaler multiplies the loss by; ``'sequential'`` does the same, so that float16 has the range.
        self.loss_scale = 1.0

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
        losses, super_calls = self._task_pass(bound, self.super_net)
        super_losses = _weighted(losses, 'super', self.alpha)
        if self.mode == 'sequential':
            super_losses = backpropagated(super_losses, self.detector, self.loss_scale)
        losses, base_calls = self._base_pass(bound)
        base_losses = _weighted(losses, 'base', (1 - self.alpha) * self.gt_weight)
        kd_losses = self._kd_losses(super_calls, base_calls)
        if kd_losses:
            kd_losses['kd.to_task'] = (total_loss(kd_losses) / total_loss(super_losses | base_losses)).detach()
        return super_losses | base_losses | kd_losses

    def _task_pass(self, bound: inspect.BoundArguments, skip: SkipConfig) -> tuple[Losses, Calls]:
        """The detector's own losses at ``skip``, and the calls that the distillation compares."""
        with self.backbone.using_skip(skip), caught_calls(self._compared_modules()) as calls:
            losses = type(self.detector).forward(*bound.args, **bound.kwargs)
        return losses, calls

    def _base_pass(self, bound: inspect.BoundArguments) -> tuple[Losses, Calls]:
        """The same at the base-net; backbone and neck only where it has no task loss."""
        if self.gt_weight:
            return self._task_pass(bound, self.base_net)
        with self.backbone.using_skip(self.base_net), caught_calls(self._compared_modules()) as calls:
            self.detector.extract_feat(bound.arguments['inputs'])
        return {}, calls

    def _compared_modules(self) -> list[nn.Module]:
        return [self.detector.neck, *(self.prediction_kl.modules if self.prediction_kl else ())]

    def _kd_losses(self, super_calls: Calls, base_calls: Calls) -> Losses:
        super_feats, base_feats = (calls[self.detector.neck][0][1] for calls in (super_calls, base_calls))
        losses = {}
        if self.kd_weight:
            feature_loss = FEATURE_LOSSES[self.feature]
            weight = (1 - self.alpha) * self.kd_weight * self.kd_ramp * self.temperature**2
            for level in self.levels:
                loss = feature_loss(super_feats[level.index], base_feats[level.index], self.temperature)
                losses[f'kd.loss_{level.name}'] = weight * loss
        if self.prediction_kl:
            weight = (1 - self.alpha) * self.prediction_weight * self.kd_ramp
            found = self.prediction_kl.losses(super_calls, base_calls, base_feats)
            losses.update((f'kd.{name}', weight * loss) for name, loss in found.items())
        return losses


def check_settings(
    alpha: float,
    gt_weight: float,
    kd_weight: float,
    prediction_weight: float,
    feature: str,
    temperature: float,
    mode: str,
) -> None:
    """Raise a UserError for a setting of :class:`SelfDistillation` that is out of its range."""
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha should be the super-net's share, 0 to 1, but got {alpha}")
    weights = (gt_weight, kd_weight, prediction_weight)
    if min(weights) < 0 or not any(weights):
        raise UserError(
            'gt_weight, kd_weight and prediction_weight should not be negative nor all 0, which leaves the base-net '
            f'untrained, but got {", ".join(map(str, weights))}'
        )
    if feature not in FEATURE_LOSSES:
        raise UserError(f'feature should be one of {", ".join(FEATURE_LOSSES)}, but got {feature!r}')
    if temperature <= 0:
        raise UserError(f'temperature should be positive, but got {temperature}')
    if mode not in ('joint', 'sequential'):
        raise UserError(f"mode should be 'joint' or 'sequential', but got {mode!r}")


def _weighted(losses: Losses, net: str, weight: float) -> Losses:
    """Prefix every entry with ``net``, and weight those that mmdet's parse_losses adds up ("loss" in the name)."""

    def scale(value: Any) -> Any:
        return [weight * part for part in value] if isinstance(value, (list, tuple)) else weight * value

    return {f'{net}.{name}': scale(value) if 'loss' in name else value for name, value in losses.items()}
