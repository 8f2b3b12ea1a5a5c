"""A batch at several numbers of proposals: RPN and RoI heads run once, at the most, and the others take their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor

from ..operating_point import OperatingPoint
from ..points import find_rpn, using_point

Feats = tuple[Tensor, ...]
Instances = list[InstanceData]  # one an image


def predict_each(
    detector: BaseDetector, data: dict[str, Any], numbers: Sequence[int | None]
) -> list[list[DetDataSample]]:
    """Predict a preprocessed batch with each number of proposals.

    What an RPN keeps of fewer proposals are the first of more: a list sorted by score, after its NMS. RoI heads treat
    every proposal by itself until their own NMS; so the first rows of their outputs are those of fewer proposals, up to
    what a matrix product of another height rounds. Heads that mmdet does not predict by as its StandardRoIHead run once
    a number; what is no stock two-stage detector runs all of itself once a number.

    Args:
        detector: a detector, at the skip in force.
        data: a preprocessed batch, ``inputs`` (N, 3, H, W) and ``data_samples``; it is left as it is.
        numbers: of proposals; None is the config's own.

    Returns:
        For each number the images' samples with their predictions.

    Raises:
        UserError: the detector has no number of proposals to choose.
    """
    samples = data['data_samples']

    def copies() -> list[DetDataSample]:
        return [sample.clone() for sample in samples]  # predictions are written into them

    if len(numbers) == 1 or type(detector).predict is not TwoStageDetector.predict:
        apart = []
        for number in numbers:
            with using_point(detector, OperatingPoint(proposals=number)):
                apart.append(detector._run_forward({**data, 'data_samples': copies()}, mode='predict'))
        return apart
    settings: Any = find_rpn(detector).test_cfg
    counts: list[int] = [settings['max_per_img'] if number is None else number for number in numbers]
    feats = detector.extract_feat(data['inputs'])
    with using_point(detector, OperatingPoint(proposals=max(counts))):
        proposals = detector.rpn_head.predict(feats, samples, rescale=False)
    found = _detect(detector.roi_head, feats, proposals, samples, counts)
    return [detector.add_pred_to_datasample(copies(), each) for each in found]


def _detect(
    head: StandardRoIHead,
    feats: Feats,
    proposals: Instances,
    samples: Sequence[DetDataSample],
    counts: Sequence[int],
) -> list[Instances]:
    """For each count the detections among so many proposals an image."""
    shared = _share_boxes(head, feats, proposals, [sample.metainfo for sample in samples], counts)
    if shared is not None:
        return shared
    return [head.predict(feats, [each[:count] for each in proposals], samples, rescale=True) for count in counts]


def _share_boxes(
    head: StandardRoIHead, feats: Feats, proposals: Instances, metas: list[dict], counts: Sequence[int]
) -> list[Instances] | None:
    """As StandardRoIHead predicts, the box head run once; None where a head does it in another way."""
    methods = ['predict', 'predict_bbox', *(['predict_mask'] if head.with_mask else [])]
    if not all(getattr(type(head), method) is getattr(StandardRoIHead, method) for method in methods):
        return None
    if not all(map(len, proposals)):  # mmdet's way to go on without a proposal
        return None
    rois = bbox2roi([each.bboxes for each in proposals])
    outputs = head._bbox_forward(feats, rois)
    if not isinstance(outputs['bbox_pred'], Tensor):
        return None
    lengths = list(map(len, proposals))
    by_image = [part.split(lengths) for part in (rois, outputs['cls_score'], outputs['bbox_pred'])]
    found = []
    for count in counts:
        rows = [[part[:count] for part in parts] for parts in by_image]
        found.append(head.bbox_head.predict_by_feat(*rows, metas, head.test_cfg, rescale=not head.with_mask))
    return _share_masks(head, feats, metas, found) if head.with_mask else found


def _share_masks(head: StandardRoIHead, feats: Feats, metas: list[dict], found: Sequence[Instances]) -> list[Instances]:
    """Detections with their masks; a box and label that several numbers of proposals lead to has its mask once."""
    unions, places = zip(*map(_union, zip(*found)))
    masked = head.predict_mask(feats, metas, list(unions), rescale=True)
    results: list[Instances] = []
    for number, own in enumerate(found):
        results.append([image[place[number]] for image, place in zip(masked, places)])
        for result, detections in zip(results[-1], own):
            result.scores = detections.scores
    return results


def _union(found: Sequence[InstanceData]) -> tuple[InstanceData, list[Tensor]]:
    """The boxes and labels of some detections of one image, each once, and where each of the detections is in it."""
    rows = torch.cat([torch.cat([each.bboxes.double(), each.labels[:, None].double()], 1) for each in found])
    union, places = rows.unique(dim=0, return_inverse=True)
    boxes = union[:, :-1].to(found[0].bboxes.dtype)
    return InstanceData(bboxes=boxes, labels=union[:, -1].long()), list(places.split(list(map(len, found))))
