"""Shapes: a generated COCO-format instance-segmentation data set to try the main job on.

Each image holds up to four overlapping shapes of random size, angle and colour on a textured
background; one image in 16 holds none. A mask is the visible part of its shape only.
"""

import colorsys
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..errors import UserError
from ..files import PARTIAL, partial_path, read_json, remove_left, write_atomically

CLASSES: tuple[str, ...] = ('circle', 'rectangle', 'triangle')

SPLITS = ('train', 'val')
FOLDERS = (*SPLITS, 'annotations')  # the last one is written last: a set that has it is whole
FRESH = 'shapes'  # how the name of a folder begins in which a set is made
UNFINISHED = re.compile(rf'{FRESH}\.[^/]*{re.escape(PARTIAL)}(/|$)')
NAME = re.compile(r'annotations/instances_(train|val)\.json|(train|val)/\d{6,}\.png')
MIN_IMAGE_SIZE = 32
MAX_SHAPES = 4
EMPTY_EVERY = 16
DIAMETER_SHARES = (0.22, 0.6)  # of the image size
MAX_TILT = np.pi / 8  # enough to be seen, too little to make the classes hard to tell apart
HUE_SPREAD = 0.07  # standard deviation, of a full circle
MIN_VISIBLE_SHARE = 0.5
MIN_VISIBLE_AREA = 25  # px
SUBPIXEL_BITS = 4
DESCRIPTION = 'Generated shapes (adn_mmdet)'


def make_shapes(
    out_dir: str | os.PathLike[str],
    num_train: int = 600,
    num_val: int = 60,
    image_size: int = 192,
    seed: int = 0,
) -> Path:
    """Write the data set in COCO's layout, unless the folder holds the very same set already.

    The files are ``annotations/instances_{train,val}.json`` and ``{train,val}/000001.png`` and so on. An image depends
    on its split, its number, its size and the seed only. A generated set with other arguments, or one that was cut off,
    is replaced, once the new one is whole; nothing else in a folder is ever replaced or removed.

    Args:
        out_dir: the folder to write to; it is made if need be.
        num_train: how many training images, at least 1.
        num_val: how many validation images, at least 1.
        image_size: height and width of each image in pixels, at least 32.
        seed: at least 0.

    Returns:
        ``out_dir``.

    Raises:
        UserError: a ValueError, if a number is too small or the folder holds anything that this function did not make.
        OSError: a file cannot be written; what was there is as it was.
    """
    info = _make_info(num_train=num_train, num_val=num_val, image_size=image_size, seed=seed)
    out_dir = Path(out_dir)
    held = _held_files(out_dir)
    is_same = all(_read_info(path) == info for path in _json_paths(out_dir))
    if is_same and len(held) == num_train + num_val + len(SPLITS):
        return out_dir

    remove_left(out_dir / FRESH)
    fresh = partial_path(out_dir / FRESH)
    try:
        for split_index, (split, count) in enumerate(zip(SPLITS, (num_train, num_val))):
            images = _write_images(fresh / split, count, image_size, (seed, split_index))
            _write_json(fresh / 'annotations' / f'instances_{split}.json', {'info': info, **images})
        if not any(path.exists() for path in _json_paths(out_dir)):  # pictures alone: of a run that was cut off?
            _require_equal(out_dir, fresh, held)
        for name in FOLDERS:
            shutil.rmtree(out_dir / name, ignore_errors=True)
            os.replace(fresh / name, out_dir / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return out_dir


def _json_paths(out_dir: Path) -> list[Path]:
    return [out_dir / 'annotations' / f'instances_{split}.json' for split in SPLITS]


def _held_files(out_dir: Path) -> list[Path]:
    """The files that are there of a set, by their names.

    Raises:
        UserError: there are others, or links.
    """
    held: list[Path] = []
    if not out_dir.exists():
        return held
    for path in sorted(out_dir.rglob('*')):
        name = path.relative_to(out_dir).as_posix()
        if UNFINISHED.match(name):
            continue
        if path.is_symlink() or not (path.is_dir() if name in FOLDERS else NAME.fullmatch(name)):
            raise UserError(f'{path} is not of a generated set and is left alone: give another folder')
        if path.is_file():
            held.append(path)
    for path in _json_paths(out_dir):
        if path.exists() and (_read_info(path) or {}).get('description') != DESCRIPTION:
            raise UserError(f'{path} is not of a generated set and is left alone: give another folder')
    return held


def _require_equal(out_dir: Path, fresh: Path, held: list[Path]) -> None:
    """Make sure that the pictures that are there are the ones that this run would write."""
    for path in held:
        made = fresh / path.relative_to(out_dir)
        if not made.exists() or made.read_bytes() != path.read_bytes():
            raise UserError(f'{path} is not of a generated set and is left alone: give another folder')


def _make_info(**parameters: int) -> dict[str, Any]:
    """Check the arguments that decide what is drawn, and put them in COCO's ``info``."""
    lowest_values = {'num_train': 1, 'num_val': 1, 'image_size': MIN_IMAGE_SIZE, 'seed': 0}
    for name, value in parameters.items():
        lowest = lowest_values[name]
        if not isinstance(value, int) or value < lowest:
            raise UserError(f'{name} is {value!r}, but must be a whole number of at least {lowest}')
    return {'description': DESCRIPTION, 'version': '1', 'parameters': parameters}


def _read_info(path: Path) -> dict[str, Any] | None:
    """What an annotation file says of itself; None where there is no such file, or it says nothing."""
    try:
        info = read_json(path, '').get('info')
    except UserError:
        return None
    return info if isinstance(info, dict) else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content) + '\n').encode())


def _write_images(split_dir: Path, count: int, image_size: int, seeds: tuple[int, int]) -> dict[str, Any]:
    """Draw and write the images of a split.

    Args:
        split_dir: where the images go.
        count: how many.
        image_size: height and width in pixels.
        seeds: the seed and the index of the split.

    Returns:
        The split's COCO content but for ``info``.

    Raises:
        OSError: if an image cannot be written.
    """
    split_dir.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng([*seeds, index])
        is_empty = index % EMPTY_EVERY == EMPTY_EVERY // 2
        num_shapes = 0 if is_empty else int(rng.integers(2, MAX_SHAPES + 1))
        pixels, shapes = _draw_image(rng, image_size, num_shapes)

        file_name = f'{index + 1:06d}.png'
        if not cv2.imwrite(str(split_dir / file_name), pixels):
            raise OSError(f'{split_dir / file_name} could not be written')
        images.append({'id': index + 1, 'file_name': file_name, 'height': image_size, 'width': image_size})
        for label, visible in shapes:
            ids = {'id': len(annotations) + 1, 'image_id': index + 1, 'category_id': label + 1}
            annotations.append({**ids, **_annotate(visible)})
    categories = [{'id': label + 1, 'name': name, 'supercategory': 'shape'} for label, name in enumerate(CLASSES)]
    return {
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }


def _annotate(visible: np.ndarray) -> dict[str, Any]:
    """Describe a boolean mask (height, width) as COCO does, in pixels."""
    mask = visible.astype(np.uint8)
    # Polygons cannot express the hole that a small shape leaves in a large one; an RLE is exact.
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {
        'segmentation': {'size': list(mask.shape), 'counts': encoded['counts'].decode('ascii')},
        'area': int(mask.sum()),
        'bbox': list(cv2.boundingRect(mask)),
        'iscrowd': 0,
    }


def _draw_image(
    rng: np.random.Generator, image_size: int, num_shapes: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image.

    Args:
        rng: source of all that is random.
        image_size: height and width in pixels.
        num_shapes: how many shapes to place; those that would be hidden too far are left out.

    Returns:
        The uint8 image (height, width, 3), and the class index and the visible mask
        (height, width) of each shape, the hindmost first.
    """
    colours = [rng.uniform(50, 205) + rng.uniform(-25, 25, 3)]  # a greyish background
    canvas = colours[0] + _texture(rng, image_size)
    covered = np.zeros((image_size, image_size), bool)
    shapes: list[tuple[int, np.ndarray]] = []
    # Front to back: a shape that is left out then changes nothing about those already placed.
    for _ in range(num_shapes):
        label = int(rng.integers(len(CLASSES)))
        mask = _place_shape(rng, CLASSES[label], image_size)
        visible = mask & ~covered
        if visible.sum() < max(MIN_VISIBLE_AREA, MIN_VISIBLE_SHARE * mask.sum()):
            continue
        covered |= mask
        colours.append(_contrasting_colour(rng, label, colours))
        canvas[visible] = (colours[-1] + _texture(rng, image_size))[visible]
        shapes.insert(0, (label, visible))

    canvas = cv2.GaussianBlur(canvas, (3, 3), 0.5)
    canvas += rng.normal(0, rng.uniform(2, 8), canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), shapes


def _texture(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Mix a gradient, stripes and clouds, as offsets (height, width, 3) to a colour."""
    rows, columns = np.mgrid[:image_size, :image_size] / image_size
    angle = rng.uniform(0, 2 * np.pi)
    gradient = np.cos(angle) * columns + np.sin(angle) * rows
    stripes = np.sin(2 * np.pi * rng.uniform(4, 12) * gradient)
    grains = rng.uniform(-1, 1, (12, 12))
    clouds = cv2.resize(grains, (image_size, image_size), interpolation=cv2.INTER_CUBIC)
    return np.stack([gradient, stripes, clouds], axis=-1) @ rng.uniform(-25, 25, (3, 3))


def _contrasting_colour(rng: np.random.Generator, label: int, others: list[np.ndarray]) -> np.ndarray:
    """Of a few random colours (3,) of a class, the one farthest from the others.

    Each class favours a hue, so that a small network learns it in minutes; the hues of the classes overlap.
    """
    hues = rng.normal(label / len(CLASSES), HUE_SPREAD, 8) % 1
    saturations, values = rng.uniform(0.3, 1, 8), rng.uniform(0.4, 1, 8)
    candidates = 255 * np.array([colorsys.hsv_to_rgb(*hsv) for hsv in zip(hues, saturations, values)])
    distances = np.linalg.norm(candidates[:, None] - np.stack(others), axis=-1)
    return candidates[distances.min(axis=1).argmax()]


def _place_shape(rng: np.random.Generator, class_name: str, image_size: int) -> np.ndarray:
    """Place a shape at random; at most a small part lies outside the image.

    Returns:
        The boolean mask (height, width) of the shape, hidden parts included.
    """
    smallest, largest = (share * image_size for share in DIAMETER_SHARES)
    radius = rng.uniform(smallest, largest) / 2
    centre = rng.uniform(0.7 * radius, image_size - 0.7 * radius, 2)
    angle = rng.uniform(-MAX_TILT, MAX_TILT)
    corners = centre + radius * _unit_corners(class_name, angle, rng.uniform(0.6, 1))
    mask = np.zeros((image_size, image_size), np.uint8)
    fixed_point = np.round(corners * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(mask, [fixed_point], 1, shift=SUBPIXEL_BITS)
    return mask.astype(bool)


def _unit_corners(class_name: str, angle: float, aspect: float) -> np.ndarray:
    """Corners (corner, xy) of a shape in the unit circle.

    Args:
        class_name: one of CLASSES.
        angle: how far to turn the shape, in radians.
        aspect: short side over long side; it only bears on rectangles.
    """
    if class_name == 'rectangle':
        half = np.arctan(aspect)
        angles = np.array([half, np.pi - half, np.pi + half, -half])
    else:
        num_corners = {'circle': 48, 'triangle': 3}[class_name]
        angles = np.arange(num_corners) * (2 * np.pi / num_corners)
    return np.stack([np.cos(angles + angle), np.sin(angles + angle)], axis=-1)
