"""Live sources, webcams and network streams: always the newest frame, and an end instead of a hang where none comes."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from ..errors import UserError

SCHEMES = ('rtsp', 'rtsps', 'rtmp', 'rtmps', 'rtp', 'udp', 'tcp', 'srt', 'mms')
SUFFIXES = ('.m3u8', '.mjpg', '.mjpeg')  # of http:// addresses; others name images or videos
TIMEOUT = 10.0  # seconds


def is_stream(source: Any) -> bool:
    """Whether an input names a live source: the number of a webcam, its device file, or a stream's address."""
    if isinstance(source, bool) or not isinstance(source, (int, str)):
        return False
    text = str(source)
    if text.isdecimal():
        return not os.path.exists(text)
    if text.startswith('/dev/video'):
        return True
    scheme, _, rest = text.partition('://')
    return bool(rest) and (scheme.lower() in SCHEMES or urlsplit(text).path.lower().endswith(SUFFIXES))


class Stream:
    """A live source, opened; iterating over it, once, yields its frames, (H, W, 3), BGR.

    Frames that come while another is looked at are left out, but for the newest, so that nothing lags or piles up.
    Where the source stalls, one warning says so and the iteration ends.

    Args:
        source: the number of a webcam, its device file, or an address such as ``rtsp://…``; any that OpenCV opens.
        timeout: seconds without a frame after which a source has stalled.

    Raises:
        UserError: it cannot be opened; or, from the iteration, it sends no frame at all.
    """

    def __init__(self, source: int | str, timeout: float = TIMEOUT) -> None:
        if not timeout > 0:
            raise UserError(f'timeout should be a positive number of seconds, but got {timeout!r}')
        text = str(source)
        self.is_webcam = text.isdecimal()
        self.path = f'webcam {text}' if self.is_webcam else _without_password(text)
        self.name = re.sub(r'[^\w.-]+', '_', self.path)
        self.timeout, self.capture = timeout, _open(int(text) if self.is_webcam else text, timeout)
        if not self.capture.isOpened():
            hint = 'is it plugged in, and used by no other program?' if self.is_webcam else 'check the address'
            raise UserError(f'{self.path} cannot be opened: {hint}')
        self.fps = float(self.capture.get(cv2.CAP_PROP_FPS))
        self._news = threading.Condition()
        self._newest: np.ndarray | None = None
        self._ended = False
        self._reader: threading.Thread | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._reader is not None:
            raise UserError(f'{self.path} has been read: open it again')
        self._reader = threading.Thread(target=self._read, name=self.path, daemon=True)  # OpenCV may hang in it
        self._reader.start()
        number = 0
        try:
            while (frame := self._next()) is not None:
                number += 1
                yield frame
            if not number:
                raise UserError(f'{self.path} sent no frame within {self.timeout:g} s: check that it is on')
            if not self._ended:
                warnings.warn(
                    f'{self.path} sent nothing for {self.timeout:g} s and is given up after frame {number}',
                    stacklevel=2,
                )
        finally:
            self._ended = True  # from which the reader lets go of the source

    def _next(self) -> np.ndarray | None:
        """The newest frame that nobody has seen; None where the source has ended or stalled."""
        with self._news:
            self._news.wait_for(lambda: self._newest is not None or self._ended, self.timeout)
            frame, self._newest = self._newest, None
        return frame

    def _read(self) -> None:
        while not self._ended:
            there, frame = self.capture.read()
            with self._news:
                self._newest = frame if there else self._newest
                self._ended = self._ended or not there
                self._news.notify()
        self.capture.release()


def _open(source: int | str, timeout: float) -> cv2.VideoCapture:
    """A capture of a source; the many lines that OpenCV has for one that is not there are kept from the terminal."""
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if isinstance(source, int) or '://' not in source:
            return cv2.VideoCapture(source)
        opening, reading = int(1e3 * timeout), int(1e3 * (timeout + 1))  # the reader gives up after the iteration
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, opening, cv2.CAP_PROP_READ_TIMEOUT_MSEC, reading]
        return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
    finally:
        cv2.utils.logging.setLogLevel(level)


def _without_password(address: str) -> str:
    """An address as it may be shown: without its user and password."""
    return re.sub(r'://[^/@]*@', '://', address)
