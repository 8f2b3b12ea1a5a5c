"""Times the sub-networks of a detector against each other, and the parts of each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from torch import nn

from ..backbones.adaptive_depth import find_backbone
from ..backbones.features import unwrap
from ..errors import UserError
from ..ops.precision import autocast, keep_boxes_exact, post_processors
from ..skip_config import SkipConfig
from .images import TimedImages
from .timing import interleave, require_counts, seconds

PARTS = ('backbone', 'neck', 'post')  # what is timed beside the whole call; the heads are the rest
NUM_RESAMPLES = 2000  # of the bootstrap

Span = tuple[Any, Any]  # two moments of :func:`_now`
Batch = dict[str, Any]


@dataclass(frozen=True)
class LatencyRow:
    """The latency of one sub-network, in milliseconds a batch.

    The parts are medians too, but for the heads, which are the rest, so that the parts add up to ``ms``.

    Attributes:
        skip: the code; None for a detector that has no depth to choose.
        ms: median of the whole call, from preprocessed images to detections.
        ms_p90: 90th percentile of the same.
        ms_iqr: its interquartile range.
        backbone_ms: the backbone's part.
        neck_ms: the neck's part, 0 without one.
        heads_ms: that of the networks of dense and RoI heads, RoI pooling, and of whatever else there is.
        post_ms: that of the heads' ``predict_by_feat``: decoding, NMS (the proposals' as well), pasting of masks.
        ratio: ``ms`` by that of the first row.
        ratio_low: lower end of the ratio's 95 % bootstrap interval.
        ratio_high: its upper end.
    """

    skip: str | None
    ms: float
    ms_p90: float
    ms_iqr: float
    backbone_ms: float
    neck_ms: float
    heads_ms: float
    post_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


def measure_latency(
    model: nn.Module,
    codes: Sequence[SkipConfig] | None,
    input_size: tuple[int, int],
    batch_size: int = 1,
    rounds: int = 20,
    warmup: int = 3,
    amp: bool = False,
    channels_last: bool = False,
    images: TimedImages | None = None,
) -> list[LatencyRow]:
    """Time a detector at each of its depths, on the device that it is on.

    A copy that shares its weights is timed, so that other threads may detect meanwhile.

    Args:
        model: a detector, or a wrapper of one.
        codes: sub-networks; None for a detector that has no depth to choose.
        input_size: height and width of the images in pixels.
        batch_size: images a call.
        rounds: timed calls of each sub-network, in turn; those of a round are of the same images.
        warmup: untimed calls of each before.
        amp: run in autocast, bfloat16 on the CPU and float16 on a GPU.
        channels_last: run in that memory format; the model's weights are left in it.
        images: what to detect on; None takes noise.

    Returns:
        One row a code, the ratios to the first; one row for None.

    Raises:
        UserError: numbers that are not positive, or an image that cannot be read.
    """
    require_counts(batch_size=batch_size, rounds=rounds)
    require_size(input_size)
    detector = _copy(unwrap(model)).eval()
    device = next(detector.parameters()).device
    if amp:
        keep_boxes_exact(detector, device)
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    names: list[str | None] = [None] if codes is None else [str(code) for code in codes]
    supply = (
        batch
        for loaded in (images or TimedImages()).batches(input_size, batch_size)
        for batch in [_preprocess(detector, loaded, channels_last)] * len(names)
    )
    on_device = torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
    spans = _timed_parts(detector, device)
    with on_device, torch.no_grad():
        in_precision = partial(autocast, device, amp)
        calls = {name: partial(_time_call, detector, name, supply, in_precision, spans) for name in names}
        times = interleave(calls, rounds, warmup)
    return summarize({name: np.array(rows) for name, rows in times.items()})


def summarize(seconds: Mapping[str | None, np.ndarray]) -> list[LatencyRow]:
    """One row a sub-network.

    Args:
        seconds: by code, (rounds, 1 + len(PARTS)): those of the whole call, then those of PARTS; a round of one
            sub-network belongs to the same round of the others.
    """
    first = next(iter(seconds.values()))[:, 0]
    resampled = np.random.default_rng(0).integers(len(first), size=(NUM_RESAMPLES, len(first)))
    medians_of_first = np.median(first[resampled], axis=1)
    rows = []
    for code, times in seconds.items():
        whole = times[:, 0]
        ms, backbone, neck, post = (float(value) for value in 1e3 * np.median(times, axis=0))
        q1, q3, p90 = np.percentile(whole, [25, 75, 90])
        low, high = np.percentile(np.median(whole[resampled], axis=1) / medians_of_first, [2.5, 97.5])
        rows.append(
            LatencyRow(
                skip=code,
                ms=ms,
                ms_p90=1e3 * float(p90),
                ms_iqr=1e3 * float(q3 - q1),
                backbone_ms=backbone,
                neck_ms=neck,
                heads_ms=ms - backbone - neck - post,
                post_ms=post,
                ratio=float(np.median(whole) / np.median(first)),
                ratio_low=float(low),
                ratio_high=float(high),
            )
        )
    return rows


def require_size(size: Any) -> None:
    """Make sure that a size is the height and the width of an image.

    Raises:
        UserError: it is not.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise UserError(f'input_size should be (height, width) in pixels, but got {size!r}')
    for length in size:
        require_counts(input_size=length)


def _copy(detector: BaseDetector) -> BaseDetector:
    """A copy with methods and a mode of its own; it shares the tensors, and stages that copying would uncompile."""
    shared: list[Any] = [*detector.parameters(), *detector.buffers()]
    shared += [module for module in detector.modules() if module._compiled_call_impl is not None]
    return copy.deepcopy(detector, {id(part): part for part in shared})


def _preprocess(detector: BaseDetector, batch: Batch, channels_last: bool) -> Batch:
    data = detector.data_preprocessor(batch, False)
    if channels_last:
        data['inputs'] = data['inputs'].contiguous(memory_format=torch.channels_last)
    return data


def _time_call(
    detector: BaseDetector,
    skip: str | None,
    supply: Iterator[Batch],
    in_precision: Callable[[], torch.autocast],
    spans: dict[str, list[Span]],
) -> list[float]:
    """Seconds of the whole call on the next batch, and of each of PARTS in it."""
    batch = next(supply)
    samples = copy.deepcopy(batch['data_samples'])  # detections are written into them

    def predict() -> None:
        with in_precision():  # entered at every call: it keeps the casts of weights until it is left
            detector(batch['inputs'], samples, mode='predict')

    for part in spans.values():
        part.clear()
    with find_backbone(detector).using_skip(skip) if skip else nullcontext():
        whole = seconds(predict)
    return [whole, *(sum(map(_length, spans[part])) for part in PARTS)]


def _timed_parts(detector: nn.Module, device: torch.device) -> dict[str, list[Span]]:
    """From now on, note when each of PARTS begins and ends, in a detector that nobody else has.

    Methods are replaced, since ``predict_by_feat`` is no module, of which hooks would know.
    """
    spans: dict[str, list[Span]] = {part: [] for part in PARTS}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = _now(device)
            result = function(*args, **kwargs)
            spans[part].append((start, _now(device)))
            return result

        return call

    methods = [('backbone', detector.backbone, 'forward')]
    if getattr(detector, 'with_neck', False):
        methods.append(('neck', detector.neck, 'forward'))
    methods += [('post', head, 'predict_by_feat') for head in post_processors(detector)]
    for part, module, name in methods:
        setattr(module, name, timed(part, getattr(module, name)))
    return spans


def _now(device: torch.device) -> Any:
    """This moment of the device's work; on a GPU an event, so that nothing is waited for."""
    if device.type != 'cuda':
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _length(span: Span) -> float:
    """Seconds from one moment to the other, both past."""
    start, end = span
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3
