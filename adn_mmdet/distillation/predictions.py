"""What super-net and base-net predict, compared: ŷ of arXiv 2312.16392, Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from mmdet.models.dense_heads import DDQDETRHead, DETRHead, SABLRetinaHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads import StandardRoIHead
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..errors import UserError
from .compared import Pick, Picked, pyramid_module
from .losses import distribution_kl, relative_l1, sigmoid_kl, softmax_kl, top_k_kl
from .settings import DistillationSettings


class Predictions(Protocol):
    """The prediction losses of a model."""

    @property
    def runs_heads(self) -> bool:
        """Whether :meth:`losses` reads a pass through all of the model, also where the base-net has no truth."""

    @property
    def covers(self) -> tuple[str, ...]:
        """Names of modules, such as ``'bbox_head'``, of which these losses train all that can be skipped."""

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
    if not is_detector:
        return LogitKL(model, settings.top_k)
    head: Any = getattr(model, 'bbox_head', None)
    if isinstance(head, DETRHead) and not isinstance(head, DDQDETRHead):
        return QueryKL(model)
    return PredictionKL(model)


class LogitKL:
    """The prediction loss of an image classifier, ``loss_cls``: :func:`top_k_kl` of both nets' logits, (N, classes).

    Args:
        classifier: one whose ``head`` returns its logits.
        top_k: how many of the super-net's classes are compared, at most; None takes all.
    """

    runs_heads = False
    covers: tuple[str, ...] = ()

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
    ``loss_bbox``       dense: boxes of all anchors, each weighted by the score of the super-net's likeliest class;
                        :func:`distribution_kl` of GFL's heads, :func:`relative_l1` of others
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
        self.runs_heads = False
        self.dense_head: Any = getattr(detector, 'rpn_head' if self.roi_head else 'bbox_head', None)
        is_compared = self.roi_head is None and not hasattr(self.dense_head, 'kernel_convs')  # RTMDet-Ins: masks
        self.covers: tuple[str, ...] = ('bbox_head',) if is_compared else ()
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
        is_dense = isinstance(dense, BaseDenseHead) and not isinstance(dense, (DETRHead, SABLRetinaHead))
        return is_dense and has_logits and (roi is None or isinstance(roi, StandardRoIHead))

    @property
    def picks(self) -> dict[nn.Module, Pick]:
        """The modules whose calls :meth:`losses` reads, and what of each: class logits, and the regions."""
        if self.roi_head is None:
            return {self.dense_head: lambda _, output: (*output[0], *output[1])}
        return {
            self.dense_head: lambda _, output: tuple(output[0]),
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
        super_dense = of_super[self.dense_head]
        base_dense = of_base.get(self.dense_head) or self.picks[self.dense_head]((), self.dense_head(base_feats))
        kl = sigmoid_kl if self.dense_head.use_sigmoid_cls else softmax_kl
        num_levels = len(super_dense) // (2 if self.roi_head is None else 1)
        super_logits = self._logits(super_dense[:num_levels])
        dense = kl(super_logits, self._logits(base_dense[:num_levels]))
        if self.roi_head is None:
            boxes = [self._boxes(found[:num_levels], found[num_levels:]) for found in (super_dense, base_dense)]
            return {'loss_cls': dense, 'loss_bbox': self._box_loss(boxes[0], boxes[1], self._scores(super_logits))}
        (rois,), (super_logits,) = of_super[self.roi_head.bbox_roi_extractor], of_super[self.roi_head.bbox_head]
        base_logits = self.roi_head._bbox_forward(base_feats, rois)['cls_score']
        return {'loss_rpn_cls': dense, 'loss_cls': softmax_kl(super_logits, base_logits)}

    def _logits(self, levels: Sequence[Tensor]) -> Tensor:
        """Class logits of all levels, each (N, anchors · K, H, W), as rows (all anchors, K)."""
        num_classes = self.dense_head.cls_out_channels
        return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, num_classes) for level in levels])

    def _boxes(self, logits: Sequence[Tensor], levels: Sequence[Tensor]) -> Tensor:
        """What is regressed at all levels, each (N, anchors · values, H, W), as rows (all anchors, values)."""
        num_classes, rows = self.dense_head.cls_out_channels, []
        for of_level, level in zip(logits, levels):
            anchors = of_level.shape[1] // num_classes
            rows.append(level.permute(0, 2, 3, 1).reshape(-1, level.shape[1] // anchors))
        return torch.cat(rows)

    def _scores(self, logits: Tensor) -> Tensor:
        """Of logits (R, K) the scores of the likeliest class, (R,); the last of a softmax is background."""
        logits = logits.detach().float()
        scores = logits.sigmoid() if self.dense_head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
        return scores.max(-1).values

    def _box_loss(self, of_super: Tensor, of_base: Tensor, weights: Tensor) -> Tensor:
        bins = getattr(self.dense_head, 'reg_max', 0) + 1
        if bins > 1 and of_super.shape[1] == 4 * bins:
            return distribution_kl(of_super.unflatten(1, (4, bins)), of_base.unflatten(1, (4, bins)), weights)
        return relative_l1(of_super, of_base, weights)


class QueryKL:
    """The prediction losses of a DETR: its last decoder layer's queries, each with one of the base-net's own.

    Both nets may ask with queries of their own (DINO takes them from its encoder), so that they are matched first: the
    100 queries of which the super-net is surest, each with another of the base-net's, at the least sum of distances, 2
    times of classes and 5 times of boxes, as DETR weighs them (Carion et al., arXiv 2005.12872, section 3.1).

    ==================  =============================================================================================
    ``loss_cls``        KL of the classes of matched queries
    ``loss_bbox``       Σ_q w_q ‖base_q − super_q‖₁ / max(1, Σ_q w_q) of matched boxes, of 0 to 1; w is the super-net's
                        score
    ==================  =============================================================================================

    Args:
        detector: one whose ``bbox_head`` is mmdet's DETRHead or of its kind.
    """

    runs_heads = True
    covers = ('bbox_head', 'encoder', 'decoder')
    num_compared = 100

    def __init__(self, detector: Any) -> None:
        self.head, self.num_queries = detector.bbox_head, detector.num_queries

    @property
    def picks(self) -> dict[nn.Module, Pick]:
        """Class logits (N, Q, K) and boxes (N, Q, 4) of the last layer, those that denoise a truth left out."""
        return {self.head: lambda _, output: tuple(each[-1][:, -self.num_queries :] for each in output[:2])}

    def losses(self, of_super: Picked, of_base: Picked) -> dict[str, Tensor]:
        """Compare the queries of two passes over the same batch."""
        pairs = [self._matched(*image) for image in zip(*of_super[self.head], *of_base[self.head])]
        super_logits, super_boxes, base_logits, base_boxes = map(torch.cat, zip(*pairs))
        kl = sigmoid_kl if self.head.loss_cls.use_sigmoid else softmax_kl
        weights = self._probabilities(super_logits).max(-1).values
        apart = (base_boxes.float() - super_boxes.detach().float()).abs().sum(-1)
        boxes = (weights * apart).sum() / weights.sum().clamp(min=1)
        return {'loss_cls': kl(super_logits, base_logits), 'loss_bbox': boxes}

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.detach().float()
        return logits.sigmoid() if self.head.loss_cls.use_sigmoid else logits.softmax(-1)[..., :-1]

    def _matched(self, *image: Tensor) -> tuple[Tensor, ...]:
        """Logits (Q, K) and boxes (Q, 4) of both nets, row by row what is compared."""
        super_logits, super_boxes, base_logits, base_boxes = image
        scores = self._probabilities(super_logits).max(-1).values
        surest = scores.topk(min(self.num_compared, len(scores))).indices
        classes = torch.cdist(self._probabilities(super_logits[surest]), self._probabilities(base_logits), p=1)
        boxes = torch.cdist(super_boxes[surest].detach().float(), base_boxes.detach().float(), p=1)
        cost = (2 * classes + 5 * boxes).nan_to_num().cpu()  # the loss says it where a pass was not finite
        rows, columns = (torch.as_tensor(each, device=surest.device) for each in linear_sum_assignment(cost))
        chosen = surest[rows]
        return super_logits[chosen], super_boxes[chosen], base_logits[columns], base_boxes[columns]
