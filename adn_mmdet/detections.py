"""Predictions as the Detections of supervision, which tracks, counts, draws and merges them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from mmdet.structures import DetDataSample
from pycocotools import mask as rle

from .errors import UserError

if TYPE_CHECKING:
    from supervision import Detections

FACTS = ('skip', 'point', 'ms')  # of a prediction, beside what was detected


def to_supervision(result: dict[str, Any] | DetDataSample, classes: Sequence[str] = ()) -> Detections:
    """What was detected on one image, for supervision (the extra ``supervision``).

    >>> inferencer = AnyDepthInferencer('configs/mask_rcnn_r50_adn_1x_coco.py', 'epoch_12.pth')
    >>> found = to_supervision(inferencer('street.jpg', skip='TTFF'), inferencer.classes)

    Args:
        result: a prediction of an inferencer, as a dict or a data sample, or what a call on one image returned.
        classes: the names of the classes, by label; an inferencer's are its ``classes``.

    Returns:
        N objects: ``xyxy`` (N, 4) in pixels of the image, ``confidence``, ``class_id``, ``mask`` (N, H, W), bool, where
        the detector has masks, and in ``data`` one value an object: ``skip``, ``point`` and ``ms``, the milliseconds of
        the image's forward, where the prediction knows them, and ``class_name`` where ``classes`` are given.

    Raises:
        UserError: supervision is not installed, there are no detections in ``result``, those of several images, or
            labels that have no name.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise UserError(f"to_supervision needs supervision ({error}): pip install -e '.[supervision]'") from error
    prediction = _one_prediction(result)
    if isinstance(prediction, DetDataSample):
        found = Detections.from_mmdetection(prediction)
    else:
        found = Detections(
            xyxy=np.asarray(prediction['bboxes'], np.float32).reshape(-1, 4),
            confidence=np.asarray(prediction['scores'], np.float32),
            class_id=np.asarray(prediction['labels'], int),
            mask=decode_masks(prediction['masks']) if prediction.get('masks') else None,
        )
    for fact in FACTS:
        if prediction.get(fact) is not None:
            found.data[fact] = np.full(len(found), prediction.get(fact))
    if classes:
        labels = np.asarray(found.class_id)
        if len(found) and labels.max() >= len(classes):
            raise UserError(f'label {labels.max()} has no name among {len(classes)} classes: give all of them')
        found.data['class_name'] = np.asarray(classes)[labels]
    return found


def decode_masks(masks: Sequence[dict[str, Any]]) -> np.ndarray:
    """Run-length encoded masks as (N, H, W), bool."""
    return rle.decode(list(masks)).transpose(2, 0, 1).astype(bool)


def _one_prediction(result: Any) -> Any:
    if isinstance(result, dict) and 'predictions' in result:
        predictions = result['predictions']
        if len(predictions) != 1:
            raise UserError(f'there are {len(predictions)} predictions: convert them one by one')
        result = predictions[0]
    named = 'pred_instances' in result if isinstance(result, DetDataSample) else isinstance(result, dict)
    if not named or isinstance(result, dict) and not {'bboxes', 'scores', 'labels'} <= result.keys():
        raise UserError(
            f'to_supervision takes a prediction, with bboxes, scores and labels, but got a {type(result).__name__}'
        )
    return result
