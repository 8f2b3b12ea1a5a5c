"""Annotation files of what was detected, written as images go by: one COCO JSON, or a text of YOLO's an image."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pycocotools import mask as rle

from ..detections import FACTS
from ..errors import UserError
from ..files import file_sha256, partial_path
from .outputs import note_output, write_output

COCO, CLASSES, DATA = 'annotations.json', 'classes.txt', 'data.yaml'


def image_name(images: Any, index: int) -> str:
    """The file name of an image; of a frame, what ``ffmpeg -i NAME.mp4 -start_number 0 NAME_%06d.jpg`` calls it."""
    if not isinstance(images, list):
        return f'{images.name}_{index:06d}.jpg'
    image = images[index]
    if not isinstance(image, str):
        return f'{index:08d}.jpg'
    return PurePosixPath(urlsplit(image).path).name if '://' in image else os.path.basename(image)


class Annotations:
    """Writes what is detected into ``folder``, in a ``with`` block.

    >>> images = list_inputs('photos/')
    >>> with FORMATS['coco'](Path('out'), images, inferencer.classes) as annotations:
    ...     inferencer(images, annotations=annotations)

    Args:
        folder: where the files of :meth:`names` go.
        images: of :func:`~adn_mmdet.inference.inputs.list_inputs`.
        classes: the names of the classes, by label.
        score_thr: the least score of what is written.
    """

    def __init__(self, folder: Path, images: Any, classes: Sequence[str], score_thr: float = 0.3) -> None:
        self.folder, self.images, self.score_thr = folder, images, score_thr
        self.classes = [' '.join(name.split()) for name in classes]  # each on one line
        self.num_images = 0

    @classmethod
    def names(cls, images: Any) -> list[tuple[str, str]]:
        """The files that are written below the folder, each with what it is of.

        Raises:
            UserError: ``images`` are a live source, which has no end.
        """
        if not hasattr(images, '__len__'):
            raise UserError('annotations are of images or of a video, but a live source has no end: leave them out')
        return cls._names(images)

    @staticmethod
    def _names(images: Any) -> list[tuple[str, str]]:
        raise NotImplementedError

    def add(self, prediction: dict[str, Any], size: tuple[int, int]) -> None:
        """Write the prediction of the next image, whose ``size`` is (height, width)."""
        name = image_name(self.images, self.num_images)
        self.num_images += 1
        masks = prediction.get('masks') or [None] * len(prediction['labels'])
        corners = np.asarray(prediction['bboxes'], float).reshape(-1, 4).clip(0, [*size[::-1]] * 2).tolist()
        found = zip(prediction['labels'], prediction['scores'], corners, masks)
        self.write(name, size, [one for one in found if one[1] >= self.score_thr], prediction)

    def write(self, name: str, size: tuple[int, int], objects: list[Any], prediction: dict[str, Any]) -> None:
        """Write one image: of each object its label, score, corners (x1, y1, x2, y2) in pixels, and mask if any."""
        raise NotImplementedError

    def __enter__(self) -> Annotations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class CocoFile(Annotations):
    """One ``annotations.json``, there once the ``with`` block has ended without an exception.

    Categories are numbered from 1 in the order of the classes, images and annotations from 1 in theirs. An annotation
    has its ``score``, and where the detector has masks its run-length encoded ``segmentation``; an image has its
    ``skip``, its ``point`` and the ``ms`` of its forward. Annotations are written as they come, not kept.
    """

    @staticmethod
    def _names(images: Any) -> list[tuple[str, str]]:
        return [(COCO, 'the annotations')]

    def __enter__(self) -> CocoFile:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.partial = partial_path(self.folder / COCO)
        self.file = open(self.partial, 'w', encoding='utf-8')
        categories = [dict(id=index + 1, name=name, supercategory='') for index, name in enumerate(self.classes)]
        start = dict(info=dict(description='detected by adn_mmdet'), licenses=[], categories=categories)
        self.file.write(f'{json.dumps(start)[:-1]}, "annotations": [')
        self.rows: list[str] = []
        self.num_objects = 0
        return self

    def write(self, name: str, size: tuple[int, int], objects: list[Any], prediction: dict[str, Any]) -> None:
        """Append the image's annotations to the file, and keep its own row until the end."""
        facts = {fact: prediction[fact] for fact in FACTS if fact in prediction}
        image = dict(id=self.num_images, file_name=name, width=size[1], height=size[0], **facts)
        self.rows.append(json.dumps(image))
        for label, score, (left, top, right, bottom), mask in objects:
            area = float(rle.area(mask)) if mask else (right - left) * (bottom - top)
            self.num_objects += 1
            row = dict(
                id=self.num_objects,
                image_id=self.num_images,
                category_id=label + 1,
                bbox=[left, top, right - left, bottom - top],
                area=area,
                iscrowd=0,
                score=score,
                **({'segmentation': mask} if mask else {}),
            )
            self.file.write(f'{"," * (self.num_objects > 1)}\n{json.dumps(row)}')

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self.file:
                if kind is None:
                    self.file.write('],\n"images": [\n' + ',\n'.join(self.rows) + ']}\n')
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                note_output(self.folder, COCO, file_sha256(self.partial))
                os.replace(self.partial, self.folder / COCO)
        finally:
            with contextlib.suppress(OSError):
                os.remove(self.partial)


class YoloFiles(Annotations):
    """``labels/NAME.txt`` an image, ``classes.txt`` and ``data.yaml``, which name the classes.

    A line an object: its class, counted from 0, then x and y of its box's middle, its width and height, from 0 to 1.
    """

    @staticmethod
    def _names(images: Any) -> list[tuple[str, str]]:
        sources = images if isinstance(images, list) else [images.path] * len(images)
        named = [source if isinstance(source, str) else f'array {index}' for index, source in enumerate(sources)]
        labels = [(YoloFiles._label(image_name(images, index)), source) for index, source in enumerate(named)]
        return [(CLASSES, 'the classes'), (DATA, 'the names of the classes'), *labels]

    @staticmethod
    def _label(image: str) -> str:
        return f'labels/{os.path.splitext(image)[0]}.txt'

    def write(self, name: str, size: tuple[int, int], objects: list[Any], prediction: dict[str, Any]) -> None:
        """Write the image's text; one of an image without objects is empty."""
        lines = []
        for label, _, (left, top, right, bottom), _ in objects:
            box = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
            parts = [number / side for number, side in zip(box, [*size[::-1]] * 2)]
            lines.append(f'{label} {" ".join(f"{part:.6f}" for part in parts)}\n')
        write_output(self.folder, self._label(name), ''.join(lines).encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            write_output(self.folder, CLASSES, ''.join(f'{name}\n' for name in self.classes).encode())
            write_output(self.folder, DATA, f'names: {json.dumps(self.classes, ensure_ascii=False)}\n'.encode())


FORMATS: dict[str, type[Annotations]] = {'coco': CocoFile, 'yolo': YoloFiles}
