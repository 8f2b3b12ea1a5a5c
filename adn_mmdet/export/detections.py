"""Detections from features, for whole batches of any size: mmdet's heads as a traceable graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

NO_BOX = -1.0  # the score of what is no detection; those of boxes are never negative


class DenseDetections(nn.Module):
    """The detections of a single-stage detector, as ``BaseDenseHead.predict_by_feat`` finds them."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.head = detector.bbox_head

    def forward(self, feats: Sequence[Tensor], size: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        """Detect; see :meth:`detect`.

        Args:
            feats: the neck's outputs, each (N, C, H, W).
            size: height and width of the images, without what they were padded by, (2,).
        """
        return self.detect(self.head(feats), size)

    def detect(self, predicted: Sequence[Sequence[Tensor]], size: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            predicted: what the head returns: scores, boxes and, of some, a factor of the scores, of each level.
            size: height and width of the images, without what they were padded by, (2,).

        Returns:
            Boxes (N, K, 4), scores (N, K), labels (N, K) and the number of detections (N,), best first; other rows
            are zeros.
        """
        head, cfg = self.head, self.head.test_cfg
        cls_scores, bbox_preds, *factors = predicted
        parts = zip(cls_scores, bbox_preds, _priors(head, cls_scores), head.prior_generator.strides, *factors)
        boxes, scores, labels = (torch.cat(levels, 1) for levels in zip(*(self._level(*part) for part in parts)))
        boxes = _clip(boxes, size)
        scores = _without_small(boxes, scores, cfg)
        return _detections(*_suppress(boxes, scores, labels, cfg.nms, torch.tensor(cfg.max_per_img)))

    def _level(
        self, cls_score: Tensor, bbox_pred: Tensor, priors: Tensor, stride: Sequence[int], factor: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of a level's ``nms_pre`` best, those that are not above ``score_thr`` as NO_BOX."""
        head, cfg = self.head, self.head.test_cfg
        scores = _activated(head, cls_score)
        num_classes = head.cls_out_channels - (not head.use_sigmoid_cls)
        scores, order = _best(scores.flatten(1), cfg.get('nms_pre', -1))
        kept = scores > cfg.get('score_thr', 0)
        places = torch.div(order, num_classes, rounding_mode='floor')
        priors = priors[places]
        if hasattr(head, 'integral'):  # GFL predicts distributions of distances
            distances = _take(_by_prior(bbox_pred, 4 * (head.reg_max + 1)), places)
            deltas = head.integral(distances).reshape(*places.shape, 4) * stride[0]
            priors = head.anchor_center(priors)
        else:
            deltas = _take(_by_prior(bbox_pred, 4), places)
        if factor is not None:
            scores = scores * _by_prior(factor, 1)[..., 0].gather(1, places).sigmoid()
        boxes = head.bbox_coder.decode(priors, deltas)
        return boxes, scores.where(kept, scores.new_tensor(NO_BOX)), order - places * num_classes


class TwoStageDetections(nn.Module):
    """The detections of a Faster or Mask R-CNN, as ``RPNHead`` and ``StandardRoIHead`` find them."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.rpn_head, self.roi_head = detector.rpn_head, detector.roi_head

    def forward(self, feats: Sequence[Tensor], size: Tensor, num_proposals: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            feats: the neck's outputs, each (N, C, H, W).
            size: height and width of the images, without what they were padded by, (2,).
            num_proposals: how many regions of an image are looked at, at most; a scalar.

        Returns:
            What :meth:`DenseDetections.forward` does, then masks (N, K, h, w) where there are, as probabilities.
        """
        head, cfg = self.roi_head.bbox_head, self.roi_head.test_cfg
        regions, region_scores = self._proposals(feats, size, num_proposals)
        cls_score, bbox_pred = head(_roi_features(self.roi_head.bbox_roi_extractor, feats, regions))
        boxes = head.bbox_coder.decode(regions, bbox_pred.reshape(*region_scores.shape, -1))
        boxes = boxes.reshape(*region_scores.shape, -1, 4).expand(-1, -1, head.num_classes, -1).flatten(1, 2)
        scores = cls_score.softmax(-1)[:, :-1].reshape(*region_scores.shape, head.num_classes)
        kept = (scores > cfg.score_thr) & (region_scores > NO_BOX)[..., None]
        scores = scores.where(kept, scores.new_tensor(NO_BOX))
        labels = torch.arange(head.num_classes).expand_as(scores).flatten(1)
        limit = torch.tensor(cfg.max_per_img)
        found = _detections(*_suppress(_clip(boxes, size), scores.flatten(1), labels, cfg.nms, limit))
        return (*found, self._masks(feats, *found)) if self.roi_head.with_mask else found

    def _proposals(self, feats: Sequence[Tensor], size: Tensor, num_proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4) and their scores (N, P), NO_BOX where an image has fewer than P."""
        head, cfg = self.rpn_head, self.rpn_head.test_cfg
        cls_scores, bbox_preds = head(feats)
        levels = []
        for level, (cls_score, bbox_pred, priors) in enumerate(zip(cls_scores, bbox_preds, _priors(head, cls_scores))):
            scores, places = _best(_activated(head, cls_score).flatten(1), cfg.get('nms_pre', -1))
            boxes = head.bbox_coder.decode(priors[places], _take(_by_prior(bbox_pred, 4), places))
            levels.append((boxes, scores, torch.full_like(places, level)))
        boxes, scores, groups = (torch.cat(parts, 1) for parts in zip(*levels))
        boxes = _clip(boxes, size)
        return _suppress(boxes, _without_small(boxes, scores, cfg), groups, cfg.nms, num_proposals)[:2]

    def _masks(self, feats: Sequence[Tensor], boxes: Tensor, scores: Tensor, labels: Tensor, num: Tensor) -> Tensor:
        """How likely each cell of a box belongs to the object of its label, (N, K, h, w)."""
        masks = self.roi_head.mask_head(_roi_features(self.roi_head.mask_roi_extractor, feats, boxes))
        channels = torch.zeros_like(labels) if self.roi_head.mask_head.class_agnostic else labels
        masks = masks[torch.arange(channels.numel()), channels.flatten()].sigmoid()
        return masks.reshape(*labels.shape, *masks.shape[1:]) * (scores > 0)[..., None, None]


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator: (N, M, 4) boxes, (N, 1, M) scores, a limit (1,) to (S, 3) of image, 0 and box."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, limit: Tensor, iou_threshold: float) -> Tensor:
        kept = []
        for image, (own, values) in enumerate(zip(boxes, scores[:, 0])):
            valid = (values > NO_BOX / 2).nonzero()[:, 0]
            best = valid[nms(own[valid], values[valid], iou_threshold)][: int(limit)]
            kept.append(torch.stack([torch.full_like(best, image), torch.zeros_like(best), best], 1))
        return torch.cat(kept)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, limit: Any, iou_threshold: float) -> Any:
        thresholds = (g.op('Constant', value_t=torch.tensor([value])) for value in (iou_threshold, NO_BOX / 2))
        return g.op('NonMaxSuppression', boxes, scores, limit, *thresholds)


def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, nms_cfg: Any, limit: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best boxes of each group, without those that overlap a better one, at most ``limit`` an image.

    Args:
        boxes: (N, M, 4).
        scores: (N, M), NO_BOX of what is no box.
        groups: (N, M), the label or level: boxes of different ones do not suppress each other.
        nms_cfg: mmcv's settings.
        limit: a scalar.

    Returns:
        Boxes, scores and groups of the K best, in order; K is that of the image with the most, at least 1.
    """
    shifted = boxes
    if not nms_cfg.get('class_agnostic', False):  # groups apart from each other as mmcv moves them, for equal rounding
        largest = boxes.where((scores > NO_BOX)[..., None], boxes.new_tensor(0)).amax((1, 2))
        shifted = boxes + (groups.to(boxes) * (largest[:, None] + 1))[..., None]
    kept = _NonMaxSuppression.apply(shifted, scores[:, None], limit.reshape(1), nms_cfg.iou_threshold)
    num_boxes = torch._shape_as_tensor(scores)[1]
    marks = torch.zeros_like(scores).flatten().scatter(0, kept[:, 0] * num_boxes + kept[:, 2], 1.0)
    scores = scores.where(marks.reshape(scores.shape) > 0, scores.new_tensor(NO_BOX))
    scores, order = _topk(scores, torch.minimum(limit, num_boxes))
    most = (scores > NO_BOX).sum(1).max().clamp(min=1)
    order = order[:, :most]
    return _take(boxes, order), scores[:, :most], groups.gather(1, order)


def _detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Zeros in the rows of no detection, and how many there are."""
    found = scores > NO_BOX
    return boxes * found[..., None], scores * found, labels * found, found.sum(1)


def _roi_features(extractor: Any, feats: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """``SingleRoIExtractor`` on boxes (N, P, 4): features (N * P, C, h, w)."""
    images = torch.arange(boxes.shape[0]).to(boxes)[:, None].expand(boxes.shape[:2])
    rois = torch.cat([images[..., None], boxes], -1).flatten(0, 1)
    layers, feats = extractor.roi_layers, feats[: extractor.num_inputs]
    levels = extractor.map_roi_levels(rois, len(feats))
    features, places = [], []
    for level, (layer, feat) in enumerate(zip(layers, feats)):
        own = (levels == level).nonzero()[:, 0]
        size, scale, ratio = layer.output_size, layer.spatial_scale, layer.sampling_ratio
        features.append(roi_align(feat, rois[own], size, scale, ratio, layer.aligned))
        places.append(own)
    return torch.cat(features)[torch.cat(places).argsort()]


def _priors(head: Any, cls_scores: Sequence[Tensor]) -> list[Tensor]:
    sizes = [cls_score.shape[-2:] for cls_score in cls_scores]
    return head.prior_generator.grid_priors(sizes, dtype=torch.float32, device='cpu')


def _activated(head: Any, cls_score: Tensor) -> Tensor:
    """Probabilities (N, priors, classes) of scores (N, priors * channels, H, W)."""
    scores = _by_prior(cls_score, head.cls_out_channels)
    return scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]


def _by_prior(values: Tensor, channels: int) -> Tensor:
    """(N, A * channels, H, W) to (N, H * W * A, channels)."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, channels)


def _best(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The best of (N, M), and where they are; all where ``limit`` is not positive."""
    number = torch._shape_as_tensor(scores)[1]
    return _topk(scores, torch.minimum(number, torch.tensor(limit)) if limit > 0 else number)


def _topk(scores: Tensor, number: Any) -> tuple[Tensor, Tensor]:
    return scores.topk(number, 1)


def _take(values: Tensor, places: Tensor) -> Tensor:
    """Rows of (N, M, C) at (N, K)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes inside images of a height and width."""
    limits = size.flip(0).repeat(2).to(boxes)
    return torch.minimum(boxes.clamp(min=0), limits)


def _without_small(boxes: Tensor, scores: Tensor, cfg: Any) -> Tensor:
    """Scores in which boxes of at most ``min_bbox_size`` are no boxes."""
    smallest = cfg.get('min_bbox_size', -1)
    if smallest < 0:
        return scores
    large = ((boxes[..., 2:] - boxes[..., :2]) > smallest).all(-1)
    return scores.where(large, scores.new_tensor(NO_BOX))
