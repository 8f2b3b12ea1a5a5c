"""Images to time detectors on: real ones, because what is detected decides the time; noise where there are none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from mmdet.datasets.transforms import FixShapeResize, InferencerLoader, PackDetInputs
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate

from ..config import annotation_file, coco_dataset, image_folder
from ..datasets.annotations import read_coco
from ..errors import UserError
from ..input_size import for_images, pipeline_at

MOST = 20  # files that are used in turn: as many as there are rounds by default
NOISE = 'noise'
META_KEYS = ('img_path', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor')


@dataclass(frozen=True)
class TimedImages:
    """Images to time a detector on.

    Attributes:
        source: the folder that they are in, or NOISE.
        paths: their files; none of noise.
    """

    source: str = NOISE
    paths: tuple[str, ...] = ()

    def about(self) -> dict[str, Any]:
        """What a latency file says of them: ``source``, ``number`` of files and the ``sha256`` of what these hold."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        return dict(source=self.source, number=len(self.paths), sha256=digest.hexdigest() if self.paths else None)

    def batches(self, input_size: tuple[int, int], batch_size: int = 1) -> Iterator[dict[str, Any]]:
        """Batches without end, as a data loader makes them.

        Args:
            input_size: height and width in pixels that images are fitted into; see :meth:`Reading.of_shape`.
            batch_size: images in each.

        Raises:
            UserError: an image cannot be read.
        """
        reading = Reading.of_shape(input_size)
        for images in self.supply(input_size, batch_size):
            yield reading.prepare([reading.decode(image) for image in images])

    def supply(self, shape: tuple[int, int], batch_size: int = 1) -> Iterator[list[str | np.ndarray]]:
        """Images in turn, without end.

        Args:
            shape: height and width of noise, in pixels.
            batch_size: how many at a time.
        """
        rng = np.random.default_rng(0)
        noise = (rng.integers(256, size=(*shape, 3), dtype=np.uint8) for _ in count())
        images: Iterator[Any] = cycle(self.paths) if self.paths else noise
        while True:
            yield list(islice(images, batch_size))


@dataclass(frozen=True)
class Reading:
    """How images become what a data loader's batch holds, in two parts that are timed apart.

    Attributes:
        loader: reads and decodes an image, of a path or an array.
        steps: the rest of the test pipeline: resizes and packs.
    """

    loader: Compose
    steps: Compose

    @classmethod
    def of_config(cls, cfg: Config, size: int | None = None) -> Reading:
        """As a config's test pipeline has it, at an input size; None is its own.

        Raises:
            UserError: the pipeline cannot be told a size.
        """
        loader, *steps = for_images(pipeline_at(cfg, size))
        return cls(Compose([loader]), Compose(steps))

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Reading:
        """Images are fitted into a height and width, and padded, so that a detector sees one size at every call."""
        height, width = shape
        resize = FixShapeResize(width=width, height=height, keep_ratio=True)
        return cls(Compose([InferencerLoader()]), Compose([resize, PackDetInputs(META_KEYS)]))

    def decode(self, image: str | np.ndarray) -> Any:
        """Read and decode an image.

        Raises:
            UserError: it cannot be read.
        """
        return _naming(self.loader, image, image)

    def prepare(self, decoded: Sequence[Any]) -> dict[str, Any]:
        """Resize decoded images, and make a batch of them."""
        return pseudo_collate(
            [_naming(self.steps, results, results.get('img_path', 'an array')) for results in decoded]
        )


def find_images(cfg: Config, folder: str | os.PathLike[str] | None = None) -> TimedImages:
    """The images to time a config's detector on, at most MOST, from everywhere in the order of their names.

    Args:
        cfg: a config.
        folder: of images; None takes the config's test set, and noise where that is not there.

    Raises:
        UserError: there is no image in ``folder``, or the test set's annotations cannot be read.
    """
    if folder is None:
        source = image_folder(coco_dataset(cfg.test_dataloader))
        paths = _test_images(cfg, source)
    else:
        source = Path(folder)
        paths = _images_in(source)
        if not paths:
            raise UserError(f'{source} should be a folder of images ({" ".join(IMG_EXTENSIONS)}), but has none')
    if not paths:
        return TimedImages()
    number = min(MOST, len(paths))
    return TimedImages(str(source), tuple(paths[index * len(paths) // number] for index in range(number)))


def _test_images(cfg: Config, folder: Path) -> list[str]:
    """The files of a config's test set, in the order of their names; those in its folder where no COCO file says."""
    annotations = annotation_file(cfg.test_dataloader)
    if annotations is None or annotations.suffix != '.json' or not annotations.is_file():
        return _images_in(folder) if folder != Path() else []  # which the config does not name
    names = {str(row.get('file_name')) for row in read_coco(annotations)['images'] if isinstance(row, dict)}
    return sorted(path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path))


def _images_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob('*') if path.suffix.lower() in IMG_EXTENSIONS)


def _naming(steps: Compose, what: Any, image: Any) -> Any:
    """Run steps of a pipeline, with an error that names the image."""
    try:
        return steps(what)
    except Exception as error:  # of the file system, of cv2, and of mmcv, where cv2 returns nothing
        raise UserError(f'{image} cannot be read as an image ({type(error).__name__}): give other images') from error
