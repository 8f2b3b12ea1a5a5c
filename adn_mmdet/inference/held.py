"""A budget that is held: frames run one after another, each at the point that a controller chooses for it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet.structures import DetDataSample

from ..config import require_output
from ..errors import UserError
from ..operating_point import OperatingPoint
from ..points import using_point
from .controller import BudgetController
from .stream import Stream
from .video import Video

if TYPE_CHECKING:
    from .strict import Images, StrictInferencer

LOG_HEAD = 'frame,point,ms\n'


def require_log(path: str | os.PathLike[str] | None) -> None:
    """Make sure that a log can be written, in a place where there is nothing but an older log.

    Raises:
        UserError: it cannot, or something else is there.
    """
    if path is None:
        return
    require_output(path)
    if os.path.exists(path):
        with open(path, 'rb') as file:
            if file.readline() not in (b'', LOG_HEAD.encode()):
                raise UserError(f'{path} is no log of frames: move it, or give another name')


def frame_by_frame(
    inferencer: StrictInferencer,
    images: Images,
    points: Sequence[OperatingPoint],
    controller: BudgetController,
    log: str | os.PathLike[str] | None = None,
    *,
    out_dir: str | os.PathLike[str] = '',
    no_save_vis: bool = False,
    no_save_pred: bool = True,
    on_prediction: Callable[[Any], object] | None = None,
    **kwargs: Any,
) -> Iterator[Any]:
    """Predict frames, each at the point that the controller is at.

    The time of a frame, ``frame_ms`` of its prediction, is that of reading, preparing, the network and the detections.
    A live source's frames come when they come: their time begins once they are there. Drawing is not in it.

    Args:
        inferencer: detects.
        images: a video, a stream, or images in turn.
        points: those of the controller.
        controller: says which one runs next.
        log: where frame, point and ms are written, a line at a time.
        out_dir: as in StrictInferencer.
        no_save_vis: as there.
        no_save_pred: as there.
        on_prediction: as there; what is yielded is handed to it before.
        **kwargs: the others of DetInferencer, such as ``pred_score_thr`` and ``return_datasamples``.

    Returns:
        A generator of predictions, one of which is held at a time.

    Raises:
        UserError: the outputs cannot be written; or, from the generator, a frame cannot be read.
    """
    if kwargs.pop('return_vis', False):
        raise UserError('return_vis=True keeps all pictures, but a held budget keeps none: leave it out')
    inferencer._require_outputs(images, out_dir, no_save_vis, no_save_pred)
    folder = os.fspath(out_dir)
    kwargs |= dict(no_save_vis=no_save_vis, img_out_dir=folder, no_save_pred=no_save_pred, pred_out_dir=folder)
    return _predict(inferencer, images, points, controller, log, on_prediction, kwargs)


def _predict(
    inferencer: StrictInferencer,
    images: Images,
    points: Sequence[OperatingPoint],
    controller: BudgetController,
    log: str | os.PathLike[str] | None,
    on_prediction: Callable[[Any], object] | None,
    kwargs: dict[str, Any],
) -> Iterator[Any]:
    _, _, drawing, kept = inferencer._dispatch_kwargs(**kwargs)
    num_seen, said = 0, False
    video = inferencer._video_writer(images, drawing['img_out_dir'], drawing['no_save_vis'])
    with video as writer, _lines(log) as write:
        for start, frame in _timed(images):
            if not num_seen:
                _warm_up(inferencer, frame, points)
                start = time.perf_counter()
            said = said or _say_what_cannot_be(controller, points)
            point = points[controller.index]
            samples, prediction = _detect(inferencer, frame, point, kept)
            ms = 1e3 * (time.perf_counter() - start)
            controller.update(ms)
            write(f'{num_seen},{point},{ms:.3f}\n')
            num_seen += 1
            if isinstance(prediction, DetDataSample):
                prediction.set_metainfo(dict(frame_ms=ms))
            else:
                prediction['frame_ms'] = ms
            inferencer.visualize([frame], samples, video=writer, **drawing)
            if on_prediction is not None:
                on_prediction(prediction)
            yield prediction
    if isinstance(images, Video):
        images.warn_if_cut_off(num_seen)


def _timed(images: Images) -> Iterator[tuple[float, Any]]:
    """Frames, each with the moment from which its time counts."""
    frames = iter(images)
    while True:
        start = time.perf_counter()
        frame = next(frames, None)
        if frame is None:
            return
        yield (time.perf_counter() if isinstance(images, Stream) else start), frame


def _warm_up(inferencer: StrictInferencer, frame: Any, points: Sequence[OperatingPoint]) -> None:
    """Let each point run once: its first call is slow, and would be taken for a load."""
    for point in points:
        _detect(inferencer, frame, point, dict(no_save_pred=True))


def _detect(
    inferencer: StrictInferencer, frame: Any, point: OperatingPoint, kept: dict[str, Any]
) -> tuple[list[DetDataSample], Any]:
    with using_point(inferencer.model, point):
        ((_, data),) = inferencer.preprocess([frame])
        samples = inferencer.forward(data)
        (prediction,) = inferencer.postprocess(samples, **kept)['predictions']
    return samples, prediction


def _say_what_cannot_be(controller: BudgetController, points: Sequence[OperatingPoint]) -> bool:
    """Warn where even the fastest point takes longer than the budget; whether it does."""
    if controller.cannot_hold:
        warnings.warn(
            f'a budget of {controller.budget_ms:g} ms cannot be held: even {points[0]}, the fastest, takes longer; it '
            'runs while that is so',
            stacklevel=3,
        )
    return controller.cannot_hold


@contextmanager
def _lines(path: str | os.PathLike[str] | None) -> Iterator[Callable[[str], object]]:
    """A function that writes a line of the log, at once."""
    if path is None:
        yield lambda line: None
        return
    with open(Path(path), 'w', buffering=1) as file:
        file.write(LOG_HEAD)
        yield file.write
