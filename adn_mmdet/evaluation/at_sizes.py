"""A test pipeline that ends at several input sizes: an image is read and decoded once, and resized for each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dataset import Compose

from ..datasets.images import data_sets
from ..input_size import resized


class AtSizes:
    """The last step of a pipeline: what follows the first step that depends on the size, run for each size.

    A data loader's batch is then ``{size: batch}``; None is the config's own size.

    Args:
        ends: the rest of the pipeline, by size.
    """

    def __init__(self, ends: Mapping[int | None, Compose]) -> None:
        self.ends = ends

    def __call__(self, results: dict[str, Any]) -> dict[int | None, Any]:
        """What a test needs of an image, by size."""
        return {size: end(copy.deepcopy(results)) for size, end in self.ends.items()}


def prepare_at(dataset: Any, pipeline: Sequence[dict[str, Any]], sizes: Sequence[int | None]) -> None:
    """Let a data set prepare its images at several sizes, in place.

    Args:
        dataset: built from ``pipeline``, perhaps inside wrappers.
        pipeline: steps of a config, one a transform of the data set.
        sizes: short sides in pixels; None is the config's own.

    Raises:
        UserError: the pipeline cannot be told a size.
    """
    own, pipelines = resized(pipeline, None), {size: resized(pipeline, size) for size in sizes}
    common = len(own)
    for steps in pipelines.values():
        common = min(common, next((i for i, pair in enumerate(zip(own, steps)) if pair[0] != pair[1]), common))
    ends = {size: Compose(steps[common:]) for size, steps in pipelines.items()}
    for part in data_sets(dataset):
        part.pipeline.transforms[common:] = [AtSizes(ends)]
