"""Annotation files in COCO's format: what is wrong with one, and its objects without those that no one can use."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

Row = dict[str, Any]
Content = dict[str, list[Row]]

# Why an object is left out.
NO_IMAGE = 'an image_id that no image has'
NO_CATEGORY = 'a category_id that no category has'
NOT_FINITE = 'a box that is not finite'
NO_SIZE = 'a box of zero or negative size'
OUTSIDE = 'a box outside its image'
TINY = 'a box under 1 px or of area 0'
NO_MASK = 'no mask'
POLYGON = 'a polygon of under 3 points, or with points that are no pairs of numbers near the image'
RLE = 'a malformed RLE, or one of another size than its image'

IGNORED = {NO_IMAGE, NO_CATEGORY}  # by mmdet's data set and by the evaluation
NOT_TRAINED_ON = IGNORED | {NO_SIZE, OUTSIDE, TINY}  # by mmdet's data set

FAR = 10  # image sides; pycocotools' memory grows with the length of an outline, and may end the process
SHOWN = 3

Check = tuple[str, Callable[[Any], bool]]
ID: Check = ('a whole number', lambda value: isinstance(value, int))
TEXT: Check = ('a text', lambda value: isinstance(value, str))
LENGTH: Check = ('a whole number of at least 1', lambda value: isinstance(value, int) and value > 0)
NUMBER: Check = ('a number', lambda value: isinstance(value, (int, float)))
BOX: Check = (
    '[x, y, width, height]',
    lambda value: isinstance(value, list) and len(value) == 4 and all(isinstance(v, (int, float)) for v in value),
)
TABLES: dict[str, dict[str, Check]] = {
    'categories': {'id': ID, 'name': TEXT},
    'images': {'id': ID, 'file_name': TEXT, 'height': LENGTH, 'width': LENGTH},
    'annotations': {'id': ID, 'image_id': ID, 'category_id': ID, 'bbox': BOX, 'area': NUMBER},
}
CROWD: dict[str, Check] = {'iscrowd': ('0 or 1', lambda value: value in (0, 1))}  # pycocotools asks for it


def read_coco(path: Path) -> Content:
    """Read a file.

    Raises:
        UserError: it is empty, not whole JSON (says where it ends), or has not COCO's lists.
    """
    if not path.stat().st_size:
        raise UserError(f'{path} is empty: get it anew')
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f'{path} is not whole JSON ({error}): get it anew') from error
    missing = TABLES.keys() - set(content if isinstance(content, dict) else ())
    if missing:
        raise UserError(f'{path} is not in COCO format: it lacks {", ".join(sorted(missing))}')
    return content


def require_coco(content: Content, path: Path, is_evaluated: bool) -> None:
    """Make sure that every entry has what mmdet reads, and an id of its own.

    Equal ids are an error, not a warning: COCO's index silently puts the last such object or image in the place of
    the others, and mmdet refuses such a file as well.

    Args:
        content: of the file.
        path: for the message.
        is_evaluated: whether it is the ground truth of an evaluation, which also asks for ``iscrowd``.

    Raises:
        UserError: not so; names the first offenders.
    """
    for table, checks in TABLES.items():
        rows = content[table]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f'{path} is not in COCO format: {table} should be a list of objects {{…}}')
        if is_evaluated and table == 'annotations':
            checks = checks | CROWD
        for key, (wanted, is_valid) in checks.items():
            bad = [index for index, row in enumerate(rows) if not (key in row and is_valid(row[key]))]
            if bad:
                shown = ', '.join(f'{table}[{index}] {_describe(rows[index], key)}' for index in bad[:SHOWN])
                raise UserError(f'{path}: {len(bad)} of {len(rows)} {table} have no valid {key} ({wanted}): {shown}')
        twice = [number for number, count in Counter(row['id'] for row in rows).items() if count > 1]
        if twice:
            raise UserError(
                f'{path}: {len(twice)} ids occur more than once in {table} ({some(twice)}), and the last '
                'would silently replace the others: number them anew'
            )
    if not content['images']:
        raise UserError(f'{path} lists no images')


def _describe(row: Row, key: str) -> str:
    own = f'(id {row.get("id")}) ' if key != 'id' else ''
    return own + (f'has {row[key]!r:.60}' if key in row else 'lacks it')


def some(items: Sequence[Any], most: int = SHOWN) -> str:
    """The first of some items, as text."""
    return ', '.join(map(str, items[:most])) + (', …' if len(items) > most else '')


def check_classes(content: Content, path: Path, classes: str | Sequence[str]) -> str | None:
    """Compare a config's classes with a file's categories.

    mmdet takes the categories whose name is in ``classes``, in the file's order, and passes over names that it does not
    find: every label behind such a name would be another class.

    Returns:
        A warning if the order differs, else None. AP is right even so, since the evaluation counts in the same way.

    Raises:
        UserError: ``classes`` is not a list of names that occur once each in the file.
    """
    if isinstance(classes, str):
        raise UserError(f"the config's classes are the text {classes!r}: write a tuple, ({classes!r},) with its comma")
    names = [category['name'] for category in content['categories']]
    both = f"the config's metainfo.classes are {some(classes, 100)}; the file's categories are {some(names, 100)}"
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(f'{path} has no category {some(missing)}: {both}')
    used = [name for name in names if name in classes]
    if len(used) != len(set(used)) or len(used) != len(classes):
        raise UserError(f'{path}: a class or category occurs twice: {both}')
    if used != list(classes):
        return f"{path}: mmdet numbers classes in the file's order, so labels will carry wrong names: {both}"
    return None


def sort_out(
    content: Content, path: Path, with_masks: bool, is_evaluated: bool
) -> tuple[list[Row], dict[str, list[int]]]:
    """Tell the objects that can be used from the others.

    Args:
        content: a file that :func:`require_coco` has passed.
        path: for the message.
        with_masks: whether masks are needed.
        is_evaluated: whether it is the ground truth of an evaluation, which unlike training counts boxes under 1 px.

    Returns:
        The annotations that can be used, masks without polygons that cannot; and the ids of those that were changed
        or left out, by reason.

    Raises:
        UserError: not one object can be used, or none has a mask.
    """
    annotations = content['annotations']
    if with_masks and annotations and not any(annotation.get('segmentation') for annotation in annotations):
        raise UserError(
            f'{path} has no masks, which the config trains or evaluates: give annotations with a segmentation, or take '
            'a box detector, such as configs/faster_rcnn_*.py'
        )
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    kept, faults = [], defaultdict(list)
    for annotation in annotations:
        reason, usable = _judge(annotation, sizes, categories, with_masks, is_evaluated)
        if reason:
            faults[reason].append(annotation['id'])
        if usable:
            kept.append(usable)
    if not kept and (annotations or not is_evaluated):
        raise UserError(f'{path} has no object that can be used: {summarise(faults) or "it has no annotations"}')
    return kept, dict(faults)


def summarise(faults: Mapping[str, Sequence[int]]) -> str:
    """How many objects have which fault, and the first ids."""
    return '; '.join(f'{len(ids)} with {reason} (id {some(ids)})' for reason, ids in faults.items())


def _judge(
    annotation: Row,
    sizes: Mapping[int, tuple[int, int]],
    categories: set[int],
    with_masks: bool,
    is_evaluated: bool,
) -> tuple[str | None, Row | None]:
    """What is wrong with an annotation, and what of it can be used."""
    if annotation['image_id'] not in sizes:
        return NO_IMAGE, None
    if annotation['category_id'] not in categories:
        return NO_CATEGORY, None
    height, width = sizes[annotation['image_id']]
    x, y, w, h = annotation['bbox']
    if not math.isfinite(x + y + w + h):
        return NOT_FINITE, None
    if w <= 0 or h <= 0:
        return NO_SIZE, None
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return OUTSIDE, None
    if not is_evaluated and (w < 1 or h < 1 or annotation['area'] <= 0):
        return TINY, None
    if not with_masks:
        return None, annotation
    mask = annotation.get('segmentation')
    if not mask or not isinstance(mask, (list, dict)):
        return NO_MASK, None
    if isinstance(mask, dict):
        return (None, annotation) if _is_rle(mask, height, width) else (RLE, None)
    polygons = [polygon for polygon in mask if _is_polygon(polygon, FAR * max(height, width))]
    if len(polygons) == len(mask):
        return None, annotation
    return POLYGON, annotation | {'segmentation': polygons} if polygons else None


def _is_polygon(points: Any, reach: float) -> bool:
    """Whether ``[x, y, x, y, …]`` are at least 3 points within reach of the image."""
    try:
        is_whole = len(points) >= 6 and len(points) % 2 == 0 and math.isfinite(sum(points))
        return is_whole and max(points) <= reach and min(points) >= -reach
    except TypeError:
        return False


def _is_rle(rle: Row, height: int, width: int) -> bool:
    """Whether an RLE covers its image exactly; of one that does not, decoders read or write beyond their memory."""
    counts = rle.get('counts')
    if isinstance(counts, str):
        counts = _decompress(counts.encode())
    if rle.get('size') != [height, width] or not isinstance(counts, list):
        return False
    return all(isinstance(count, int) and count >= 0 for count in counts) and sum(counts) == height * width


def _decompress(text: Iterable[int]) -> list[int] | None:
    """The run lengths in COCO's compressed RLE: 5 bits a character, each number but the first three a difference to
    the last but one; None if it is malformed.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = character - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last character of a number, with its sign
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
