"""What several sub-networks compute alike, computed once: the stem, stages of a common prefix, lateral convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from ..backbones.adaptive_depth import find_backbone

Method = Callable[..., Tensor]


@contextmanager
def sharing(detector: nn.Module) -> Iterator[None]:
    """Run the sub-networks of one detector on the same images without repeating what they have in common.

    Stages form a tree of skip flags. In the order of :meth:`SkipConfig.all` the 16 sub-networks of ResNet-50 run 93
    residual blocks instead of 200. For evaluation: norms in training mode would miss the
    statistics of what is not run again.

    Args:
        detector: one with an adaptive-depth backbone; nothing stays on it.
    """
    laterals = getattr(getattr(detector, 'neck', None), 'lateral_convs', ())  # an FPN's; other necks share nothing
    with shared_calls([*find_backbone(detector).common_calls(), *((conv, 'forward') for conv in laterals)]):
        yield


@contextmanager
def preprocessed_once(detector: BaseDetector, batch: dict[str, Any]) -> Iterator[Callable[[], list[DetDataSample]]]:
    """Give what predicts a data loader's batch, at the skip in force, as often as it is called."""
    data = detector.data_preprocessor(batch, False)

    def predict() -> list[DetDataSample]:
        samples = [sample.clone() for sample in data['data_samples']]  # predictions are written into them
        return detector._run_forward({**data, 'data_samples': samples}, mode='predict')

    with sharing(detector):
        yield predict


@contextmanager
def shared_calls(methods: Iterable[tuple[nn.Module, str]]) -> Iterator[None]:
    """Let methods, each given as (owner, name), repeat their last output for the very same tensor and flags."""
    replaced = []
    try:
        for owner, name in methods:
            setattr(owner, name, _repeat_last(getattr(owner, name)))
            replaced.append((owner, name))
        yield
    finally:
        for owner, name in replaced:
            delattr(owner, name)  # the class's own shows again


def _repeat_last(method: Method) -> Method:
    """Remember the last call for each combination of flags; a tensor that was written to since is another one."""
    last: dict[tuple[Any, ...], tuple[Tensor, Tensor, tuple[int, int]]] = {}

    def call(x: Tensor, *flags: Any) -> Tensor:
        if flags in last:
            x_then, output, versions = last[flags]
            if x is x_then and (x._version, output._version) == versions:
                return output
        output = method(x, *flags)
        last[flags] = x, output, (x._version, output._version)
        return output

    return call
