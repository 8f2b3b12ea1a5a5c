"""What an inferencer is given to look at: checked before the work, and read with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS

from ..errors import UserError
from .stream import Stream, is_stream
from .video import VIDEO_EXTENSIONS, Video

Image = str | os.PathLike[str] | np.ndarray
Inputs = Image | int | Video | Stream | Sequence[Image]
KINDS = f'an image ({" ".join(IMG_EXTENSIONS)}), a video ({" ".join(VIDEO_EXTENSIONS)}) or a folder of images'


def list_inputs(inputs: Inputs) -> list[str | np.ndarray] | Video | Stream:
    """The images of a path, a URL, a folder, an array or a list of these; of a video or a live source, this, opened.

    Raises:
        UserError: there is nothing there, or nothing that can be looked at.
    """
    if isinstance(inputs, (Video, Stream)):
        return inputs
    if is_stream(inputs):
        return Stream(inputs)  # type: ignore[arg-type]
    if isinstance(inputs, (str, os.PathLike)):
        path = os.fspath(inputs)
        if path.lower().endswith(VIDEO_EXTENSIONS):
            return Video(path)
        return _images_of_folder(Path(path)) if os.path.isdir(path) else [_require_image(path)]
    images: list[Any] = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not images:
        raise UserError('there is no image to look at: the list is empty')
    return [_require_image(image) for image in images]


def _images_of_folder(folder: Path) -> list[str | np.ndarray]:
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    if not images:
        raise UserError(f'there is no image in {folder}: put some there ({" ".join(IMG_EXTENSIONS)})')
    return [_require_image(path) for path in images]


def _require_image(image: Image) -> str | np.ndarray:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(f'an image should be an array (H, W, 3), BGR, but got shape {image.shape}')
        return image
    if not isinstance(image, (str, os.PathLike)):
        raise UserError(f'an image should be a path, a URL or an array (H, W, 3), but got a {type(image).__name__}')
    path = os.fspath(image)
    if '://' in path:
        return path
    if not os.path.exists(path):
        raise UserError(f'there is no {path or chr(39) * 2}: give {KINDS}')
    if not path.lower().endswith(IMG_EXTENSIONS):
        raise UserError(f'{path} should be {KINDS}')
    if not os.path.getsize(path):
        raise UserError(f'{path} is empty: download it again')
    return path


def require_paths(**paths: Any) -> None:
    """Make sure that arguments, given by name, are paths or None.

    Raises:
        UserError: one is not.
    """
    for name, value in paths.items():
        if not isinstance(value, (str, os.PathLike, type(None))):
            raise UserError(f'{name} should be a path, but got a {type(value).__name__}')


def naming_what_fails(pipeline: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A test pipeline whose errors are one line that names the image."""

    def load(image: Any) -> Any:
        try:
            return pipeline(image)
        except Exception as error:  # as many kinds as there are transforms and file backends
            name = image if isinstance(image, str) else f'an array of shape {image.shape}'
            reason = f'{type(error).__name__}: {error}'.splitlines()[0]
            raise UserError(f'{name} cannot be read as an image ({reason})') from error

    return load
