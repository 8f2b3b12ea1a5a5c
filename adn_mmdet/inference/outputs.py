"""What an inferencer writes: checked before the work, and never in the place of a file that it has not written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import require_writable
from ..errors import UserError
from ..files import file_sha256, name_problem, write_atomically
from .pictures import picture_name
from .stream import Stream
from .video import Video

RECORD = '.written_by_adn_mmdet'  # in the output folder: the SHA-256 and the name of each file that was written there


def output_names(
    images: Sequence[str | np.ndarray] | Video | Stream, first: tuple[int, int] = (0, 0), predictions: bool = False
) -> list[tuple[str, str]]:
    """Where pictures, or else predictions, of images go, below the output folder, each with what it is of.

    Args:
        images: what to detect on.
        first: how many pictures and predictions were written before, by which those of arrays are named.
        predictions: whether the predictions are asked for.

    Raises:
        UserError: predictions of a live source are asked for.
    """
    if isinstance(images, (Video, Stream)) and not predictions:
        return [(f'vis/{images.name}.mp4', images.path)]
    if isinstance(images, Stream):
        raise UserError('predictions of a live source, which has no end, are not written: take them as they come')
    if isinstance(images, Video):
        return [(f'preds/{first[1] + index}.json', images.path) for index in range(len(images))]
    names = []
    for index, image in enumerate(images):
        source = image if isinstance(image, str) else f'array {index}'
        picture = f'vis/{picture_name(image, first[0] + index)}'
        names.append((prediction_name(image, first[1] + index) if predictions else picture, source))
    return names


def prediction_name(image: str | np.ndarray, number: int) -> str:
    """Where DetInferencer puts the predictions of an image, below the output folder; an array's by its number."""
    return f'preds/{os.path.splitext(os.path.basename(image))[0] if isinstance(image, str) else number}.json'


def require_outputs(folder: Path, outputs: Sequence[tuple[str, str]]) -> None:
    """Make sure that files can be written, each in a place where there is none but what an inferencer wrote.

    Nothing is made, the folder neither.

    Args:
        folder: where they go.
        outputs: the name of each below the folder, and what it is of.

    Raises:
        UserError: two have one name, one is an input or another's file, or they cannot be written.
    """
    inputs = {os.path.realpath(source) for _, source in outputs}
    written, seen = _read_record(folder), dict[str, str]()
    for parent in {(folder / name).parent for name, _ in outputs}:
        require_writable(_existing(parent))
    for name, source in outputs:
        path = folder / name
        if name in seen:
            done = 'drawn' if name.startswith('vis/') else 'written'
            raise UserError(f'{seen[name]} and {source} would both be {done} to {path.name}: detect on them one by one')
        seen[name] = source
        if os.path.realpath(path) in inputs:
            raise UserError(f'{path} is an input, which the output would overwrite: give another output folder')
        if os.path.lexists(path) and not (path.is_file() and f'{file_sha256(path)}  {json.dumps(name)}' in written):
            raise UserError(f'{path} was not written by an inferencer: move it, or give another output folder')
        if problem := name_problem(_existing(path.parent) / path.name):
            raise UserError(f'cannot write {path.name} ({problem}): give the image a shorter name')


def write_output(folder: Path, name: str, content: bytes) -> None:
    """Write a file below the output folder, and note that it is an inferencer's."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    note_output(folder, name, hashlib.sha256(content).hexdigest())
    write_atomically(folder / name, content)


def note_output(folder: Path, name: str, sha256: str) -> None:
    """Note that a file is an inferencer's, before it is put there: a killed run leaves what the next may replace."""
    with open(folder / RECORD, 'a') as record:
        record.write(f'{sha256}  {json.dumps(name)}\n')


def _read_record(folder: Path) -> set[str]:
    path = folder / RECORD
    return set(path.read_text(errors='replace').splitlines()) if path.is_file() else set()


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one around it that exists."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))
