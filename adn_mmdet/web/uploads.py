"""What users of the page have uploaded: in a folder of its own, checked before it is read, and removed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from PIL import Image

from ..errors import UserError
from ..files import locked
from ..inference.video import VIDEO_EXTENSIONS, Video

MOST_BYTES = 64 * 2**20  # of a file
MOST_PIXELS = 25_000_000  # of an image or a frame
FOLDER = 'adn_mmdet_web_'
LEFT_AFTER = 600.0  # seconds without a change, after which a part of an upload is what a closed connection has left


class Source(NamedTuple):
    """A file to look at, and how many frames it has; an image has 1."""

    path: Path
    num_frames: int = 1


class Uploads:
    """Which file each session of the page looks at. A file is removed with the last session that looks at it.

    Args:
        folder: where uploads are; nothing outside of it is ever removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sources: dict[str, Source] = {}
        self._lock = threading.Lock()

    def hold(self, session: str, source: Source) -> None:
        """Let a session look at a file, in the place of another one: an upload, or one of the page's own."""
        with self._lock:
            before, self._sources[session] = self._sources.get(session), source
            self._remove(before)
            for part in self.folder.iterdir():
                if part.is_file() and part.name != '.lock' and time.time() - part.stat().st_mtime > LEFT_AFTER:
                    part.unlink(missing_ok=True)

    def of(self, session: str) -> Source | None:
        """The file that a session looks at."""
        return self._sources.get(session)

    def release(self, session: str) -> None:
        """Forget a session, and remove its upload."""
        with self._lock:
            self._remove(self._sources.pop(session, None))

    def refuse(self, path: Path) -> None:
        """Remove an upload that no session can look at."""
        with self._lock:
            self._remove(Source(path))

    def _remove(self, source: Source | None) -> None:
        """Remove an upload unless a session looks at it: the same file is in the same place, whoever uploads it."""
        if source and source not in self._sources.values() and self.folder in source.path.parents:
            source.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the same content was uploaded by another name
                source.path.parent.rmdir()


@contextlib.contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder for uploads among the system's temporary ones, which is removed at the end.

    Those of processes that were killed are removed as well.
    """
    for left in Path(tempfile.gettempdir()).glob(f'{FOLDER}*'):
        with contextlib.suppress(UserError, OSError):  # in use, or another user's
            if time.time() - left.lstat().st_mtime > 60 and not left.is_symlink():
                with locked(left, seconds=0):
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER)).resolve()
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_source(path: Path) -> Source:
    """Make sure that a file is an image or a video.

    Raises:
        UserError: it is neither, or too large.
    """
    with _by_name(path):
        if _is_video(path):
            return Source(path, len(_open_video(path)))
        _read_image(path)
        return Source(path)


def read_frame(path: Path, number: int = 0) -> np.ndarray:
    """An image, or a frame of a video.

    Args:
        path: of the file.
        number: of the frame; that of an image is ignored.

    Returns:
        (H, W, 3), uint8, BGR.

    Raises:
        UserError: the file is neither, or too large, or there is no such frame.
    """
    with _by_name(path):
        if not _is_video(path):
            return _read_image(path)
        video = _open_video(path)
        frame = video[number] if number < len(video) else None
        if frame is None:
            raise UserError(f'{path} has no frame {number} that can be read: it may be cut off')
        return frame


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS


def _open_video(path: Path) -> Video:
    header = cv2.VideoCapture(str(path))
    width, height = (int(header.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    header.release()
    _require_size(path, width, height)
    return Video(str(path))


def _read_image(path: Path) -> np.ndarray:
    if not path.name.lower().endswith(IMG_EXTENSIONS):
        kinds = f'an image ({" ".join(IMG_EXTENSIONS)}) or a video ({" ".join(VIDEO_EXTENSIONS)})'
        raise UserError(f'{path} should be {kinds}')
    unreadable = UserError(f'{path} cannot be read as an image: save it again, as .jpg or .png')
    try:
        with Image.open(path) as header:
            size = header.size
    except Exception as error:  # of a file's format, and of bombs: each decoder has its own
        raise unreadable from error
    _require_size(path, *size)
    try:
        image = mmcv.imread(path)
    except cv2.error:
        image = None
    if image is None:
        raise unreadable
    return image


def _require_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UserError(
            f'{path} has {width}×{height} pixels, which are {width * height / 1e6:.0f} megapixels, but '
            f'{MOST_PIXELS / 1e6:.0f} at most are shown: make it smaller'
        )


@contextlib.contextmanager
def _by_name(path: Path) -> Iterator[None]:
    """Errors name the file, not where it is on this machine."""
    try:
        if not path.is_file():
            raise UserError(f'{path} was removed: upload it again')
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error
