"""SlicedModel: an any-depth inferencer as a model of SAHI, which finds small objects on slices of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..detections import decode_masks
from ..errors import UserError
from ..points import PointLike
from .any_depth import AnyDepthInferencer

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask
except ImportError as missing:
    raise UserError(f"slices need sahi ({missing}): pip install -e '.[sahi]'") from missing


class SlicedModel(DetectionModel):
    """What ``sahi.predict.get_sliced_prediction`` takes as its ``detection_model``.

    >>> model = SlicedModel(inferencer, slices='TTTT', whole='FFFF')
    >>> get_sliced_prediction('street.jpg', model, slice_height=640, slice_width=640, batch_size=4)

    Args:
        inferencer: of a detector with boxes, with or without masks.
        slices: the operating point of the slices, such as a depth. An image that is no larger than a slice is one.
        whole: that of the whole image, which SAHI adds to them. None, of either, takes what is in force at the call.
        confidence_threshold: the least score of what is found.

    Raises:
        UserError: a point that is not valid or that is untrained.
    """

    def __init__(
        self,
        inferencer: AnyDepthInferencer,
        slices: PointLike | None = None,
        whole: PointLike | None = None,
        confidence_threshold: float = 0.3,
    ) -> None:
        for point in (slices, whole):
            inferencer.choose(point=point)
        self.slices, self.whole = slices, whole
        super().__init__(model=inferencer, device=str(inferencer.device), confidence_threshold=confidence_threshold)

    def set_model(self, model: AnyDepthInferencer, **kwargs: Any) -> None:
        """Take the inferencer, and the names of its classes."""
        self.model = model
        self.category_mapping = {str(label): name for label, name in enumerate(model.classes)}

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect on a whole image, (H, W, 3), RGB."""
        self._original_predictions = self._detect([image], self.whole)

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Detect on slices, each (H, W, 3), RGB, in one batch."""
        self._original_predictions = self._detect(images, self.slices)

    def _detect(self, images: list[np.ndarray], point: PointLike | None) -> list[dict[str, Any]]:
        in_bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        return self.model(in_bgr, len(images), point=point)['predictions']

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: list[Any] | None = None, full_shape_list: list[Any] | None = None
    ) -> None:
        shifts = fix_shift_amount_list(shift_amount_list)
        shapes: list[Any] = fix_full_shape_list(full_shape_list) or [None] * len(shifts)
        self._object_prediction_list_per_image = [
            self._objects(prediction, dict(shift_amount=[*map(int, shift)], full_shape=shape))
            for prediction, shift, shape in zip(self._original_predictions, shifts, shapes)
        ]

    def _objects(self, prediction: dict[str, Any], place: dict[str, Any]) -> list[ObjectPrediction]:
        """The objects of one slice as SAHI's; it has polygons, which a mask of one or two pixels is too small for."""
        masks = decode_masks(prediction['masks']) if prediction.get('masks') else [None] * len(prediction['labels'])
        return [
            ObjectPrediction(
                bbox=box,
                category_id=label,
                category_name=self.model.classes[label],
                score=score,
                segmentation=None if mask is None else get_coco_segmentation_from_bool_mask(mask) or None,
                **place,
            )
            for box, label, score, mask in zip(prediction['bboxes'], prediction['labels'], prediction['scores'], masks)
            if score >= self.confidence_threshold and box[0] < box[2] and box[1] < box[3]
        ]
