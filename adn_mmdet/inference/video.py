"""Video files, frame by frame: read through mmcv, written whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from mmcv import VideoReader

from ..errors import UserError
from ..files import PARTIAL

VIDEO_EXTENSIONS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
USUAL_FPS = 25.0  # where a file does not say


class Video(VideoReader):
    """mmcv's VideoReader of a video that can be read; iterating over it gives frames, (H, W, 3), BGR.

    Raises:
        UserError: there is no such file, or no frame in it that can be read.
    """

    def __init__(self, path: str) -> None:
        if '://' not in path and not os.path.isfile(path):
            raise UserError(f'there is no video {path}: check the path')
        super().__init__(path)
        self.name = Path(path).stem
        if len(self) < 1 or self[0] is None:
            raise UserError(f'{path} is no video that OpenCV can read, or is cut off: convert it, for example to .mp4')


class VideoWriter:
    """Writes frames to an .mp4 file, which is there once the ``with`` block has ended without an exception.

    Args:
        path: where the video goes.
        fps: frames a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.partial = path.with_suffix(f'{PARTIAL}{path.suffix}')  # OpenCV goes by the suffix
        self.fps = fps if math.isfinite(fps) and fps > 0 else USUAL_FPS
        self.writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, (H, W, 3), BGR; all have the size of the first.

        Raises:
            UserError: the file cannot be written.
        """
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = frame.shape[1], frame.shape[0]
            self.writer = cv2.VideoWriter(str(self.partial), cv2.VideoWriter.fourcc(*'mp4v'), self.fps, size)
            if not self.writer.isOpened():
                raise UserError(f'cannot write the video {self.path}: this OpenCV has no encoder, or no room is left')
        self.writer.write(np.ascontiguousarray(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is None:
            return
        self.writer.release()
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            with contextlib.suppress(OSError):
                os.remove(self.partial)
