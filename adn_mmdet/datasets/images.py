"""Image files: those that are missing, cut off, or of another size than the annotations say."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import InfiniteSampler
from PIL import Image
from torch.utils.data import DataLoader

from ..errors import UserError
from .annotations import Row, plain

SAMPLE = 50
ORIENTATION = 274  # the EXIF tag
STARTS = b'\xff\xd8', b'\x89PNG'  # of JPEG and PNG files
ENDS = b'\xff\xd9', b'IEND\xaeB`\x82'


class UnreadableImageError(UserError):
    """An image that cannot be used; a data loader's worker wraps a traceback around the line."""

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition('UnreadableImageError: ')[2])


def require_images(folder: Path, images: Sequence[Row]) -> None:
    """Make sure that images exist and are not empty; their content is looked at when they are read.

    Raises:
        UserError: not so; names the first.
    """
    sizes = {path: _num_bytes(path) for path in (os.path.join(folder, image['file_name']) for image in images)}
    for trouble, number in (('missing', -1), ('empty', 0)):
        bad = [path for path, size in sizes.items() if size == number]
        if bad:
            raise UserError(
                f'{len(bad)} of {len(images)} images are {trouble}, the first is {plain(bad[0])}: download them again'
            )


def _num_bytes(path: str) -> int:
    """The size of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def compare_sizes(folder: Path, images: Sequence[Row]) -> str | None:
    """Compare the sizes in an annotation file with a sample of the images, as mmdet reads them (rotated as EXIF says).

    Returns:
        A warning with an example, or None.

    Raises:
        UserError: an image cannot be read.
    """
    sample = [images[index] for index in np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int)]
    sizes = [(image, _pixels(folder / image['file_name'], image)) for image in sample]
    wrong = [(image, size) for image, size in sizes if size != (image['height'], image['width'])]
    if not wrong:
        return None
    image, (height, width) = wrong[0]
    return (
        f'{len(wrong)} of {len(sample)} images looked at have another size than the annotations say: '
        f'{plain(folder / image["file_name"])} is {height}×{width} (height × width), '
        f'not {image["height"]}×{image["width"]}'
    )


def _pixels(path: Path, said: Row) -> tuple[int, int]:
    """Height and width; the image is decoded only where its header does not tell."""
    _require_size(str(path), said)
    try:
        with Image.open(path) as image:
            if ORIENTATION not in image.getexif():
                return image.height, image.width
    except (OSError, Image.DecompressionBombError):  # a format that Pillow does not know, no image, a very large one
        pass
    return _read(lambda: mmcv.imread(str(path)).shape[:2], str(path))


def name_unreadable(loader: DataLoader) -> DataLoader:
    """Let a data loader say which image it could not use, and refuse those that are cut off; pixels are untouched.

    Raises:
        UserError: the loader has no batch, so that a run would do nothing.
    """
    if isinstance(loader.dataset, Sized) and not isinstance(loader.sampler, InfiniteSampler) and not len(loader):
        raise UserError(
            f'a run of 0 iterations: {len(loader.dataset)} images make no batch of {loader.batch_size}: take a smaller '
            'batch_size, or drop_last=False'
        )
    for dataset in data_sets(loader.dataset):
        transforms = dataset.pipeline.transforms
        transforms[:] = [(_Read if isinstance(t, LoadImageFromFile) else _Named)(t) for t in transforms]
    return loader


def data_sets(dataset: Any) -> Iterator[Any]:
    """The data sets with a pipeline inside wrappers."""
    inner = getattr(dataset, 'datasets', None) or [part for part in [getattr(dataset, 'dataset', None)] if part]
    for part in inner:
        yield from data_sets(part)
    if not inner and hasattr(getattr(dataset, 'pipeline', None), 'transforms'):
        yield dataset


class _Named:
    """A transform, with the image's path in the message where it fails."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self.transform(results)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of cv2, where an image is resized to nothing, or an assertion on sizes
            what = ' '.join(f'{type(error).__name__}: {error}'.split())
            path = results.get('img_path')
            raise UnreadableImageError(
                f'{type(self.transform).__name__} fails on {plain(path)} ({what:.200})'
            ) from error

    def __repr__(self) -> str:
        return repr(self.transform)


class _Read(_Named):
    """A transform that reads an image."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results.get('img_path')
        if not isinstance(path, str) or not os.path.isfile(path):
            return _read(lambda: self.transform(results), path)
        _require_size(path, results)
        loaded = _read(lambda: self.transform(results), path)
        if not self.transform.ignore_empty:
            _require_whole(path)
        return loaded


def _read(read: Callable[[], Any], path: str | None) -> Any:
    """The result of ``read``."""
    try:
        return read()
    except Exception as error:  # of the file system, of cv2, and of mmcv, where cv2 returns nothing
        reason = error.strerror if isinstance(error, OSError) and error.strerror else 'it is no whole image'
        raise UnreadableImageError(f'cannot read the image {plain(path)} ({reason}): download it again') from error


def _require_size(path: str, said: dict[str, Any]) -> None:
    """Refuse an image that a few bytes blow up to far more pixels than the annotations say it has."""
    with warnings.catch_warnings(), contextlib.suppress(OSError):  # a format that Pillow does not know
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        try:
            Image.open(path).close()
        except Image.DecompressionBombError as error:
            most = Image.MAX_IMAGE_PIXELS or 0
            if said.get('height', 0) * said.get('width', 0) <= most:
                raise UnreadableImageError(
                    f'cannot read the image {plain(path)}: it has over {2 * most} pixels'
                ) from error


def _require_whole(path: str) -> None:
    """Refuse an image that ends early, the rest of which some decoders fill with grey."""
    with open(path, 'rb') as file:
        start = file.read(4)
        file.seek(-min(os.path.getsize(path), 8), os.SEEK_END)
        if file.read().endswith(ENDS) or not start.startswith(STARTS):
            return
    try:
        with Image.open(path) as image:  # what follows the end may be another's data: Pillow knows
            image.load()
    except OSError as error:
        raise UnreadableImageError(f'cannot read the image {plain(path)} ({error}): download it again') from error
