"""Times functions, and the sub-networks of a detector, against each other: interleaved, because machines are noisy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from mmdet.structures import DetDataSample
from rich.progress import track
from torch import nn

from ..backbones.adaptive_depth import find_backbone
from ..backbones.features import unwrap
from ..errors import UserError
from ..ops.precision import autocast, keep_boxes_exact, post_processors
from ..skip_config import SkipConfig

PARTS = ('backbone', 'neck', 'post')  # what is timed beside the whole call; the heads are the rest
NUM_RESAMPLES = 2000  # of the bootstrap

Name = TypeVar('Name')
Result = TypeVar('Result')
Span = tuple[Any, Any]  # two moments of :func:`_now`


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


def interleave(functions: Mapping[Name, Callable[[], Result]], rounds: int, warmup: int) -> dict[Name, list[Result]]:
    """Call the functions in turn, once a round, and collect what they return, by name.

    Args:
        functions: what to call, by name.
        rounds: how often.
        warmup: rounds before these, whose results are dropped.
    """
    results: dict[Name, list[Result]] = {name: [] for name in functions}
    for number in track(range(-warmup, rounds), description='Timing'):
        for name, function in functions.items():
            result = function()
            if number >= 0:
                results[name].append(result)
    return results


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], rounds: int = 60, warmup: int = 5
) -> dict[str, float]:
    """Time the functions in turn, once a round.

    Args:
        functions: what to time, by name.
        rounds: timed calls of each.
        warmup: untimed calls of each before.

    Returns:
        Median seconds of a call, by name; work on a GPU is waited for.
    """
    timed = {name: partial(_seconds, function) for name, function in functions.items()}
    return {name: median(seconds) for name, seconds in interleave(timed, rounds, warmup).items()}


def measure_latency(
    model: nn.Module,
    codes: Sequence[SkipConfig] | None,
    input_size: tuple[int, int],
    batch_size: int = 1,
    rounds: int = 20,
    warmup: int = 3,
    amp: bool = False,
    channels_last: bool = False,
) -> list[LatencyRow]:
    """Time a detector at each of its depths, on the device that it is on, with preprocessed images of noise.

    Args:
        model: a detector, or a wrapper of one; its train / eval mode is put back.
        codes: sub-networks; None for a detector that has no depth to choose.
        input_size: height and width of the images in pixels.
        batch_size: images a call.
        rounds: timed calls of each sub-network, in turn.
        warmup: untimed calls of each before.
        amp: run in autocast, bfloat16 on the CPU and float16 on a GPU.
        channels_last: run in that memory format; the model's weights are left in it.

    Returns:
        One row a code, the ratios to the first; one row for None.

    Raises:
        UserError: numbers that are not positive.
    """
    require_positive(batch_size=batch_size, rounds=rounds, input_size=min(input_size))
    detector = unwrap(model)
    device = next(detector.parameters()).device
    if amp:
        keep_boxes_exact(detector, device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    noise = torch.randn(batch_size, 3, *input_size, generator=torch.Generator().manual_seed(0))
    images = noise.to(device, memory_format=memory_format)
    predict = partial(detector, images, _data_samples(batch_size, input_size), mode='predict')
    was_training = detector.training
    on_device = torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
    detector.eval()
    try:
        with on_device, _timed_parts(detector, device) as spans, torch.no_grad(), autocast(device, amp):
            names: list[str | None] = [None] if codes is None else [str(code) for code in codes]
            calls = {name: partial(_time_call, predict, detector, name, spans) for name in names}
            seconds = interleave(calls, rounds, warmup)
    finally:
        detector.train(was_training)
    return summarize({name: np.array(times) for name, times in seconds.items()})


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


def require_positive(**numbers: int) -> None:
    """Make sure that numbers, given by name, are at least 1.

    Raises:
        UserError: one is not.
    """
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f'{name} should be at least 1, but got {value}')


def _data_samples(batch_size: int, input_size: tuple[int, int]) -> list[DetDataSample]:
    """What the heads want to know of images that were neither resized nor padded."""
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), input_size)
    return [DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0), img_id=index)) for index in range(batch_size)]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(function: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _time_call(
    predict: Callable[[], object],
    detector: nn.Module,
    skip: str | None,
    spans: dict[str, list[Span]],
) -> list[float]:
    """Seconds of the whole call, and of each of PARTS in it."""
    for part in spans.values():
        part.clear()
    with find_backbone(detector).using_skip(skip) if skip else nullcontext():
        whole = _seconds(predict)
    return [whole, *(sum(map(_length, spans[part])) for part in PARTS)]


@contextmanager
def _timed_parts(detector: nn.Module, device: torch.device) -> Iterator[dict[str, list[Span]]]:
    """Inside the ``with`` block, note when each of PARTS begins and ends; the detector is not changed after it."""
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
    with ExitStack() as stack:
        for part, module, name in methods:
            stack.enter_context(patch.object(module, name, timed(part, getattr(module, name))))
        yield spans


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
