"""Skip-aware self-distillation: the two passes and the one loss dict (arXiv 2312.16392, Algorithm 1).

It knows models, not runners: :class:`SelfDistillation` takes the place of a model's ``forward`` while attached,
so that both passes happen inside one forward and are followed by one backward. Distributed training, mixed precision,
gradient accumulation and clipping therefore stay MMEngine's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..backbones.adaptive_depth import find_backbone
from ..backbones.features import unwrap
from ..errors import UserError
from ..skip_config import SkipConfig
from .compared import Pick, Picked, choose_levels, compared_in
from .losses import FEATURE_LOSSES
from .predictions import predictions_of
from .sequential import backpropagated, total_loss
from .settings import DistillationSettings

Losses = dict[str, Any]


class SelfDistillation:
    """The training forward of a detector or image classifier that runs super-net and base-net on the same batch.

    loss = α·L(super) + (1−α)·[gt_weight·L(base) + kd_weight·T²·Σ_level KL(super ‖ base)
    + prediction_weight·Σ KL(predictions)]

    Called with ``mode='loss'`` it returns the dict below, whose entries are weighted already: their sum is the loss.
    Any other mode is the model's own forward.

    ==================  =============================================================================================
    ``super.loss*``     the model's losses at the super-net, times α
    ``base.loss*``      the same at the base-net, times (1−α)·gt_weight; absent with ``gt_weight=0``, where the base-net
                        has no label, and of a detector runs backbone and neck only (a DETR's
                        with ``prediction_weight`` runs all, and its losses are left out)
    ``kd.loss_p2`` …    the feature loss of a pyramid level, an output of the neck or else of the backbone, named by its
                        stride (2² here), or of a classifier's stage, ``kd.loss_stage1`` …, times
                        (1−α)·kd_weight·T²·kd_ramp; absent with ``kd_weight=0``
    ``kd.loss_cls`` …   the losses of :class:`PredictionKL`, of a DETR's :class:`QueryKL`, or of a classifier's
                        :class:`LogitKL`, times (1−α)·prediction_weight·kd_ramp; absent with ``prediction_weight=0``
    ``kd.to_task``      the sum of all ``kd.loss_*`` over that of all ``super.loss*`` and ``base.loss*``; no loss
    ``super.acc`` …     whatever a model reports without "loss" in its name, as it is
    ==================  =============================================================================================

    Args:
        detector: a detector or an image classifier, or a wrapper of one, with an adaptive-depth backbone.
        settings: the weights of the formula, and what is compared how.

    Raises:
        UserError: a level that does not exist, a setting that makes no sense for this model, or a model that cannot be
            distilled.
    """

    def __init__(self, detector: nn.Module, settings: DistillationSettings | None = None) -> None:
        self.settings = settings or DistillationSettings()
        self.detector = unwrap(detector)
        self.backbone = find_backbone(self.detector)
        self.super_net = SkipConfig.super_net(self.backbone.letter_groups)
        self.base_net = SkipConfig.base_net(self.backbone.letter_groups)
        self.compared = compared_in(self.detector)
        levels = choose_levels(self.compared.found, self.settings.levels)
        self.levels = levels if self.settings.kd_weight else []
        self.predictions = predictions_of(self.detector, self.settings)
        self._require_trained_parts()
        #: Share of the distillation's weights that is in force, 0 to 1; the hook raises it during its warm-up.
        self.kd_ramp = 1.0
        #: What a gradient scaler multiplies the loss by; ``'sequential'`` does the same, so that float16 has the range.
        self.loss_scale = 1.0
        self.is_attached = False
        self._wrapper: Any = None  # what stood in the place of the detector's forward before

    def _require_trained_parts(self) -> None:
        """Refuse to leave what comes after the compared features without a loss at the base-net."""
        covered = ('neck', *(self.predictions.covers if self.predictions else ()))
        beyond = [part.of for part in self.backbone.parts if not any(map(part.is_in, covered))]
        if beyond and not self.settings.gt_weight:
            raise UserError(
                f'gt_weight=0 would leave {", ".join(beyond)} untrained at the base-net, as features are compared '
                'before it: set gt_weight, or of a dense head or a DETR prediction_weight'
            )

    def attach(self) -> None:
        """Put this in the place of the detector's forward; a wrapper of it that stands there is called in turn.

        There is no other way without a subclass of every detector: ``forward`` is all that DDP and ``train_step`` call,
        and torch's forward hooks stand before or after one pass, where the two passes would have to share state.

        Raises:
            UserError: another one is attached.
        """
        found = vars(self.detector).get('forward')
        if isinstance(found, SelfDistillation):
            raise UserError(
                f'{type(self.detector).__name__} is distilled already: keep one SkipAwareDistillationHook in '
                'custom_hooks, or detach() the other distillation first'
            )
        self._wrapper, self.is_attached = found, True
        self.detector.forward = self

    def detach(self) -> None:
        """Put back what stood there; a wrapper that was put around this since then stays, and this passes calls on."""
        if vars(self.detector).get('forward') is self:
            del self.detector.forward
            if self._wrapper is not None:
                self.detector.forward = self._wrapper
        self.is_attached = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The detector's ``forward``; see the class for what ``mode='loss'`` returns."""
        stock_forward = type(self.detector).forward
        bound = inspect.signature(stock_forward).bind(self.detector, *args, **kwargs)
        bound.apply_defaults()
        run = partial(self._wrapper or partial(stock_forward, self.detector), *args, **kwargs)
        if not self.is_attached or bound.arguments['mode'] != 'loss':
            return run()
        alpha, gt_weight = self.settings.alpha, self.settings.gt_weight
        with _kept(bound.arguments.get('data_samples')):
            losses, super_feats, of_super = self._super_pass(run)
        super_losses = _weighted(losses, 'super', alpha)
        if self.settings.mode == 'sequential':
            super_losses = backpropagated(super_losses, self.detector, self.loss_scale)
        # Without truth a detector's base-net needs no heads, but for what the predictions are compared by.
        alone = partial(self.compared.run, bound.arguments['inputs'])
        runs_heads = gt_weight or (self.predictions and self.predictions.runs_heads)
        losses, of_base = self._base_pass(run if runs_heads else alone)
        base_losses = _weighted(losses, 'base', (1 - alpha) * gt_weight) if gt_weight else {}
        kd_losses = self._kd_losses(super_feats, of_super, of_base)
        if kd_losses:
            kd_losses['kd.to_task'] = (total_loss(kd_losses) / total_loss(super_losses | base_losses)).detach()
        return super_losses | base_losses | kd_losses

    def _super_pass(self, run: Callable[[], Any]) -> tuple[Losses, list[Tensor], Picked]:
        """What ``run`` returns at the super-net, and, without their graph, the features and predictions of it."""
        with self.backbone.using_skip(self.super_net), _picked(self._picks()) as found:
            losses = run()
        feats = [feat.detach() for feat in self.compared.features(found, self.levels)]
        modules = self.predictions.picks if self.predictions else ()
        return losses, feats, {module: tuple(tensor.detach() for tensor in found[module]) for module in modules}

    def _base_pass(self, run: Callable[[], Any]) -> tuple[Any, Picked]:
        """What ``run`` returns at the base-net, and what of it is compared."""
        with self.backbone.using_skip(self.base_net), _picked(self._picks()) as found:
            return run(), found

    def _picks(self) -> dict[nn.Module, Pick]:
        return self.compared.picks(self.levels) | (self.predictions.picks if self.predictions else {})

    def _kd_losses(self, super_feats: Sequence[Tensor], of_super: Picked, of_base: Picked) -> Losses:
        settings, base_feats = self.settings, self.compared.features(of_base, self.levels)
        feature_loss = FEATURE_LOSSES[settings.feature]
        weight = (1 - settings.alpha) * settings.kd_weight * self.kd_ramp * settings.temperature**2
        losses = {
            f'kd.loss_{level.name}': weight * feature_loss(super_feat, base_feat, settings.temperature)
            for level, super_feat, base_feat in zip(self.levels, super_feats, base_feats)
        }
        if self.predictions:
            weight = (1 - settings.alpha) * settings.prediction_weight * self.kd_ramp
            with self.backbone.using_skip(self.base_net):  # heads run once more on what the super-net proposed
                found = self.predictions.losses(of_super, of_base)
            losses.update((f'kd.{name}', weight * loss) for name, loss in found.items())
        return losses


@contextmanager
def _kept(samples: Any) -> Iterator[None]:
    """Put back what a head changes of the truth (RTMDet-Ins makes tensors of its masks), which the next pass reads."""
    truth = [sample.gt_instances for sample in samples or () if 'gt_instances' in sample]
    values = [dict(instances.items()) for instances in truth]
    yield
    for instances, own in zip(truth, values):
        instances.set_data(own)


@contextmanager
def _picked(picks: Mapping[nn.Module, Pick]) -> Iterator[Picked]:
    """Collect what ``picks`` pick of each module's first call inside the ``with`` block, and leave nothing on it."""
    found: Picked = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module not in found:
            found[module] = picks[module](inputs, output)

    with ExitStack() as stack:
        for module in picks:
            stack.callback(module.register_forward_hook(keep).remove)
        yield found


def _weighted(losses: Losses, net: str, weight: float) -> Losses:
    """Prefix every entry with ``net``, and weight those that mmdet's parse_losses adds up ("loss" in the name)."""

    def scale(value: Any) -> Any:
        return [weight * part for part in value] if isinstance(value, (list, tuple)) else weight * value

    return {f'{net}.{name}': scale(value) if 'loss' in name else value for name, value in losses.items()}
