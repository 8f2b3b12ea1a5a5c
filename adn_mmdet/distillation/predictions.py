"""KL between the class predictions of super-net and base-net: ŷ of arXiv 2312.16392, Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads import StandardRoIHead
from torch import Tensor, nn

from ..errors import UserError
from .compared import Pick, Picked, pyramid_module
from .losses import sigmoid_kl, softmax_kl, top_k_kl
from .settings import DistillationSettings


class Predictions(Protocol):
    """The prediction losses of a model."""

    @property
    def picks(self) -> dict[nn.Module, Pick]:
        """The modules whose calls :meth:`losses` reads, and what of each."""

    def losses(self, of_super: Picked, of_base: Picked) -> dict[str, Tensor]:
        """Scalars by name, not weighted, of two passes over the same batch."""


def predictions_of(model: nn.Module, settings: DistillationSettings) -> Predictions | None:
    """The prediction losses that the settings ask for.

    Raises:
        UserError: a setting that makes no sense for this model.
    """
    is_detector = isinstance(model, BaseDetector)
    if is_detector and settings.top_k is not None:
        raise UserError(
            f"top_k={settings.top_k} is of a classifier's logits, which {type(model).__name__} has not: leave it out"
        )
    if not settings.prediction_weight:
        return None
    return PredictionKL(model) if is_detector else LogitKL(model, settings.top_k)


class LogitKL:
    """The prediction loss of an image classifier, ``loss_cls``: :func:`top_k_kl` of both nets' logits, (N, classes).

    Args:
        classifier: one whose ``head`` returns its logits.
        top_k: how many of the super-net's classes are compared, at most; None takes all.
    """

    def __init__(self, classifier: Any, top_k: int | None) -> None:
        self.head, self.top_k = classifier.head, top_k

    @property
    def picks(self) -> dict[nn.Module, Pick]:
        """The head's logits."""
        return {self.head: lambda _, logits: (logits,)}

    def losses(self, of_super: Picked, of_base: Picked) -> dict[str, Tensor]:
        """Compare the logits of two passes over the same batch."""
        (super_logits,), (base_logits,) = of_super[self.head], of_base[self.head]
        return {'loss_cls': top_k_kl(super_logits, base_logits, self.top_k)}


class PredictionKL:
    """The prediction losses of one detector.

    ==================  =============================================================================================
    ``loss_rpn_cls``    two-stage detectors: objectness of all anchors
    ``loss_cls``        two-stage: classes of the regions that the super-net proposed and sampled, the same for both
                        nets, so that row by row one and the same region is compared; dense: classes of all anchors
    ==================  =============================================================================================

    Args:
        detector: with a dense head (RPN or the only one) of mmdet's usual kind; where it has a RoI head, one of a
            single stage.

    Raises:
        UserError: other heads.
    """

    def __init__(self, detector: BaseDetector) -> None:
        self.pyramid = pyramid_module(detector)
        self.roi_head: Any = getattr(detector, 'roi_head', None)
        self.dense_head: Any = getattr(detector, 'rpn_head' if self.roi_head else 'bbox_head', None)
        heads = [head for head in (self.dense_head, self.roi_head) if head is not None]
        if not self._is_supported():
            found = ' and '.join(type(head).__name__ for head in heads) or 'no head'
            raise UserError(
                'prediction_weight needs a dense head with class logits for each anchor or position, and a RoI head of '
                f'one stage where there is one, but {type(detector).__name__} has {found}: set prediction_weight=0'
            )

    def _is_supported(self) -> bool:
        dense, roi = self.dense_head, self.roi_head
        has_logits = hasattr(dense, 'use_sigmoid_cls') and hasattr(dense, 'cls_out_channels')
        return isinstance(dense, BaseDenseHead) and has_logits and (roi is None or isinstance(roi, StandardRoIHead))

    @property
    def picks(self) -> dict[nn.Module, Pick]:
        """The modules whose calls :meth:`losses` reads, and what of each: class logits, and the regions."""
        dense: dict[nn.Module, Pick] = {self.dense_head: lambda _, output: tuple(output[0])}
        if self.roi_head is None:
            return dense
        return dense | {
            self.roi_head.bbox_roi_extractor: lambda inputs, _: (inputs[1],),
            self.roi_head.bbox_head: lambda _, output: (output[0],),
        }

    def losses(self, of_super: Picked, of_base: Picked) -> dict[str, Tensor]:
        """Compare the predictions of two passes over the same batch.

        Args:
            of_super: what :attr:`picks` picked in the super-net's pass.
            of_base: the same of the base-net's, and all outputs of its neck, which the dense head is run on where it
                was not called.

        Returns:
            Scalars by name, not weighted.
        """
        base_feats = of_base[self.pyramid]
        base_dense = of_base.get(self.dense_head) or self.dense_head(base_feats)[0]
        kl = sigmoid_kl if self.dense_head.use_sigmoid_cls else softmax_kl
        dense = kl(self._logits(of_super[self.dense_head]), self._logits(base_dense))
        if self.roi_head is None:
            return {'loss_cls': dense}
        (rois,), (super_logits,) = of_super[self.roi_head.bbox_roi_extractor], of_super[self.roi_head.bbox_head]
        base_logits = self.roi_head._bbox_forward(base_feats, rois)['cls_score']
        return {'loss_rpn_cls': dense, 'loss_cls': softmax_kl(super_logits, base_logits)}

    def _logits(self, levels: Sequence[Tensor]) -> Tensor:
        """Class logits of all levels, each (N, anchors · K, H, W), as rows (all anchors, K)."""
        num_classes = self.dense_head.cls_out_channels
        return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, num_classes) for level in levels])
