"""A batch that is preprocessed once for several sub-networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample

from ..backbones.sharing import sharing


@contextmanager
def preprocessed_once(detector: BaseDetector, batch: dict[str, Any]) -> Iterator[Callable[[], list[DetDataSample]]]:
    """Give what predicts a data loader's batch, at the skip in force, as often as it is called."""
    data = detector.data_preprocessor(batch, False)

    def predict() -> list[DetDataSample]:
        samples = [sample.clone() for sample in data['data_samples']]  # predictions are written into them
        return detector._run_forward({**data, 'data_samples': samples}, mode='predict')

    with sharing(detector):
        yield predict
