"""Video files, frame by frame: read through mmcv, written whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from mmcv import VideoReader

from ..errors import UserError
from ..files import PARTIAL, partial_path

VIDEO_EXTENSIONS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
USUAL_FPS = 25.0  # where a file does not say


class Video(VideoReader):
    """mmcv's VideoReader of a video that can be read; iterating over it yields frames, (H, W, 3), BGR.

    Raises:
        UserError: there is no such file, or no frame in it that can be read.
    """

    def __init__(self, path: str) -> None:
        if '://' not in path and not os.path.isfile(path):
            raise UserError(f'there is no video {path}: check the path')
        super().__init__(path)
        self.path, self.name = path, Path(path).stem
        if len(self) < 1 or self[0] is None:
            raise UserError(f'{path} is no video that OpenCV can read, or is cut off: convert it, for example to .mp4')

    def warn_if_cut_off(self, num_seen: int) -> None:
        """Say so where fewer frames were seen than the file names: OpenCV just stops."""
        if num_seen < len(self):
            warnings.warn(f'{num_seen} of {len(self)} frames could be read: the video may be cut off', stacklevel=3)


class VideoWriter:
    """Writes frames to an .mp4 file, which is there once the ``with`` block has ended without an exception.

    To leave a generator that has frames left is no exception.

    Args:
        path: where the video goes.
        fps: frames a second.
        finished: called with what was written before it is moved to ``path``.
        live: keep what was written before an exception as well, Ctrl-C among them: it cannot be had again.
    """

    def __init__(
        self, path: Path, fps: float, finished: Callable[[Path], None] = lambda partial: None, live: bool = False
    ) -> None:
        self.path = path
        self.partial = partial_path(path).with_suffix(f'{PARTIAL}{path.suffix}')  # OpenCV goes by the suffix
        self.fps = fps if math.isfinite(fps) and fps > 0 else USUAL_FPS
        self.finished, self.live = finished, live
        self.size: tuple[int, int] | None = None  # of the first frame
        self.writer: cv2.VideoWriter | None = None
        self.num_frames, self.resized = 0, False

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, (H, W, 3), BGR; one of another size than the first is resized to that, which is said once.

        Raises:
            UserError: the file cannot be written.
        """
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.size = frame.shape[1], frame.shape[0]
            self.writer = cv2.VideoWriter(str(self.partial), cv2.VideoWriter.fourcc(*'mp4v'), self.fps, self.size)
            if not self.writer.isOpened():
                raise UserError(f'cannot write the video {self.path}: this OpenCV has no encoder, or no room is left')
        self.writer.write(np.ascontiguousarray(self._of_one_size(frame)))
        self.num_frames += 1

    def _of_one_size(self, frame: np.ndarray) -> np.ndarray:
        if self.size is None or frame.shape[1::-1] == self.size:
            return frame
        if not self.resized:
            sizes = ' to '.join(f'{width}×{height}' for width, height in (self.size, frame.shape[1::-1]))
            warnings.warn(f'frames change from {sizes}: in {self.path.name} they are resized', stacklevel=3)
        self.resized = True
        return cv2.resize(frame, self.size)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is None:
            return
        self.writer.release()
        try:
            if self.live or kind is None or kind is GeneratorExit:
                self._require_whole()
                self.finished(self.partial)
                os.replace(self.partial, self.path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(self.partial)

    def _require_whole(self) -> None:
        """Look at the file, since OpenCV does not say where a disk is full."""
        found = int(cv2.VideoCapture(str(self.partial)).get(cv2.CAP_PROP_FRAME_COUNT))
        if found != self.num_frames:
            raise UserError(f'cannot write the video {self.path}, of {self.num_frames} frames: no room is left')
