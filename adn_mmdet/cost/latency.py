"""Times the operating points of a detector against each other, end to end, and the parts of each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from torch import nn

from ..backbones.features import unwrap
from ..errors import UserError
from ..input_size import default_input_size
from ..operating_point import OperatingPoint
from ..ops.precision import autocast, keep_boxes_exact, post_processors
from ..points import require_point, using_point
from ..skip_config import SkipConfig
from .energy import Meter, measure_energy
from .images import Reading, TimedImages
from .timing import interleave, require_counts, seconds

PARTS = ('decode', 'resize', 'backbone', 'neck', 'post')  # what is timed beside the whole; the heads are the rest
NUM_RESAMPLES = 2000  # of the bootstrap

Span = tuple[Any, Any]  # two moments of :func:`_now`
Batch = dict[str, Any]
PointLike = SkipConfig | OperatingPoint


@dataclass(frozen=True)
class LatencyRow:
    """The latency of one operating point, in milliseconds a batch.

    The parts are medians too, but for the heads, which are the rest, so that the parts add up to ``ms``.

    Attributes:
        skip: the code; None for a detector that has no depth to choose.
        ms: median of the whole, from image files to detections in the images' own size.
        ms_p90: 90th percentile of the same.
        ms_iqr: its interquartile range.
        backbone_ms: the backbone's part.
        neck_ms: the neck's part, 0 without one.
        heads_ms: that of the networks of dense and RoI heads, RoI pooling, and of whatever else there is.
        post_ms: that of the heads' ``predict_by_feat``: decoding, NMS (the proposals' as well), pasting of masks.
        ratio: ``ms`` by that of the first row.
        ratio_low: lower end of the ratio's 95 % bootstrap interval.
        ratio_high: its upper end.
        size: short side of the input in pixels; None is the config's own.
        proposals: number of region proposals; None is the config's own.
        decode_ms: the part of reading and decoding the images.
        resize_ms: that of the rest of the test pipeline and of the data preprocessor: resizing, normalising, padding.
        depth_ratio: ``ms`` by that of the super-net at the same size and proposals, so that what depth gives is seen;
            None where that was not timed.
        mj: millijoules an image, of the whole GPU or processor; None where no meter says.
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
    size: int | None = None
    proposals: int | None = None
    decode_ms: float = 0.0
    resize_ms: float = 0.0
    depth_ratio: float | None = None
    mj: float | None = None

    def as_row(self) -> dict[str, Any]:
        """What a latency file holds; no ``mj`` where there was no meter."""
        return {name: value for name, value in asdict(self).items() if name != 'mj' or value is not None}


def with_references(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Points in the order given, and what they are compared with.

    Returns:
        First the super-net at the config's own size and proposals, and before the first point of each size and number
        of proposals the super-net there.
    """
    first = OperatingPoint(points[0].skip).super_net()
    return list(dict.fromkeys([first, *chain.from_iterable((point.super_net(), point) for point in points)]))


def measure_latency(
    model: nn.Module,
    points: Sequence[PointLike] | None,
    input_size: tuple[int, int] | Config,
    batch_size: int = 1,
    rounds: int = 20,
    warmup: int = 3,
    amp: bool = False,
    channels_last: bool = False,
    images: TimedImages | None = None,
    meter: Meter | None = None,
) -> list[LatencyRow]:
    """Time a detector at operating points, end to end, on the device that it is on.

    A call reads and decodes images, prepares them, and runs the detector, whose masks are pasted to the images' own
    size. A copy that shares the model's weights is timed, so that other threads may detect meanwhile.

    Args:
        model: a detector, or a wrapper of one.
        points: points or skip codes; None for a detector that has no depth to choose, at its config's own point.
        input_size: a config, whose test pipeline prepares images at the size of each point; or the height and width,
            in pixels, that all images are fitted into and padded to.
        batch_size: images a call.
        rounds: timed calls of each point, in turn; those of a round are of the same images.
        warmup: untimed calls of each before.
        amp: run in autocast, bfloat16 on the CPU and float16 on a GPU.
        channels_last: run in that memory format; the model's weights are left in it.
        images: what to detect on; None takes noise.
        meter: says what energy the calls took; None leaves it out.

    Returns:
        One row a point, the ratios to the first.

    Raises:
        UserError: numbers that are not positive, an image that cannot be read, or a point that the detector or the test
            pipeline cannot run at.
    """
    require_counts(batch_size=batch_size, rounds=rounds)
    if not isinstance(input_size, Config):
        require_size(input_size)
    detector = _copy(unwrap(model)).eval()
    timed = [OperatingPoint()] if points is None else [require_point(detector, point) for point in points]
    device = next(detector.parameters()).device
    if amp:
        keep_boxes_exact(detector, device)
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    sizes = {point.size for point in timed}
    if isinstance(input_size, Config):
        readings = {size: Reading.of_config(input_size, size) for size in sizes}
        shape = default_input_size(input_size)
    else:
        readings, shape = dict.fromkeys(sizes, Reading.of_shape(input_size)), input_size
    supply = partial((images or TimedImages()).supply, shape, batch_size)
    calls = _Calls(detector, device, amp, channels_last, readings)
    on_device = torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
    with on_device, torch.no_grad():
        of_round = (batch for batch in supply() for batch in [batch] * len(timed))
        functions = {point: partial(calls.timed, point, of_round) for point in timed}
        times = {point: np.array(rows) for point, rows in interleave(functions, rounds, warmup).items()}
        repeated = {point: partial(calls.once, point, supply()) for point in timed}
        energy = measure_energy(repeated, batch_size, meter) if meter else {}
    return [replace(row, mj=energy.get(point)) for point, row in zip(timed, summarize(times))]


def summarize(seconds: Mapping[OperatingPoint, np.ndarray]) -> list[LatencyRow]:
    """One row a point.

    Args:
        seconds: by point, (rounds, 1 + len(PARTS)): those of the whole call, then those of PARTS; a round of one point
            belongs to the same round of the others.
    """
    first = next(iter(seconds.values()))[:, 0]
    resampled = np.random.default_rng(0).integers(len(first), size=(NUM_RESAMPLES, len(first)))
    medians_of_first = np.median(first[resampled], axis=1)
    rows = []
    for point, times in seconds.items():
        whole, beside = times[:, 0], seconds.get(point.super_net())
        ms, *parts = (float(value) for value in 1e3 * np.median(times, axis=0))
        q1, q3, p90 = np.percentile(whole, [25, 75, 90])
        low, high = np.percentile(np.median(whole[resampled], axis=1) / medians_of_first, [2.5, 97.5])
        rows.append(
            LatencyRow(
                **point.as_row(),  # type: ignore[arg-type]
                **{f'{name}_ms': part for name, part in zip(PARTS, parts, strict=True)},  # type: ignore[arg-type]
                ms=ms,
                ms_p90=1e3 * float(p90),
                ms_iqr=1e3 * float(q3 - q1),
                heads_ms=ms - sum(parts),
                ratio=float(np.median(whole) / np.median(first)),
                ratio_low=float(low),
                ratio_high=float(high),
                depth_ratio=None if beside is None else float(np.median(whole) / np.median(beside[:, 0])),
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


class _Calls:
    """Calls of one detector, which nobody else has, at operating points."""

    def __init__(
        self,
        detector: BaseDetector,
        device: torch.device,
        amp: bool,
        channels_last: bool,
        readings: Mapping[int | None, Reading],
    ) -> None:
        self.detector, self.device, self.amp, self.channels_last = detector, device, amp, channels_last
        self.readings, self.spans = readings, _timed_parts(detector, device)

    def run(self, point: OperatingPoint, images: Sequence[str | np.ndarray]) -> None:
        """Detect on a batch of images, end to end."""
        reading, start = self.readings[point.size], time.perf_counter()
        decoded = [reading.decode(image) for image in images]
        read = time.perf_counter()
        batch = self.detector.data_preprocessor(reading.prepare(decoded), False)
        if self.channels_last:
            batch['inputs'] = batch['inputs'].contiguous(memory_format=torch.channels_last)
        self.spans['decode'].append((start, read))
        self.spans['resize'].append((read, time.perf_counter()))
        with autocast(self.device, self.amp):  # entered at every call: it keeps the casts of weights until it is left
            self.detector(**batch, mode='predict')

    def timed(self, point: OperatingPoint, supply: Iterator[list[str | np.ndarray]]) -> list[float]:
        """Seconds of the whole call on the next batch, and of each of PARTS in it."""
        images = next(supply)
        for part in self.spans.values():
            part.clear()
        with using_point(self.detector, point):
            whole = seconds(partial(self.run, point, images))
        return [whole, *(sum(map(_length, self.spans[part])) for part in PARTS)]

    def once(self, point: OperatingPoint, supply: Iterator[list[str | np.ndarray]]) -> None:
        """The same, but for the times."""
        with using_point(self.detector, point):
            self.run(point, next(supply))


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
