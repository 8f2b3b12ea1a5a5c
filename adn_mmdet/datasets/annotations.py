"""Annotation files in COCO's format: what is wrong with one, and its objects without those that no one can use."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json

Row = dict[str, Any]
Content = dict[str, list[Row]]

# Why an object is left out.
NO_IMAGE = 'an image_id that no image has'
NO_CATEGORY = 'a category_id that no category has'
NOT_FINITE = 'a box or area that is not finite'
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

SIDE, PIXELS = 2**20, 2**30  # the most that OpenCV reads of an image


def _is_whole(value: Any) -> bool:
    return type(value) is int  # not bool


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


Check = tuple[str, Callable[[Any], bool]]
# Evaluations compute with int64, and count a negative id as none.
ID: Check = ('a whole number, 0 to 2^63 - 1', lambda value: _is_whole(value) and 0 <= value < 2**63)
TEXT: Check = ('a text', lambda value: isinstance(value, str))
LENGTH: Check = ('a whole number, 1 to 2^20', lambda value: _is_whole(value) and 0 < value <= SIDE)
NUMBER: Check = ('a number', _is_number)
BOX: Check = (
    '[x, y, width, height]',
    lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)),
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
        UserError: it is not sound JSON (says where it ends), or lacks COCO's lists.
    """
    content = read_json(path, 'download it again, or export it again', constants=True)
    missing = TABLES.keys() - content.keys()
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
                'would silently replace the others: give each its own'
            )
    if not content['images']:
        raise UserError(f'{path} lists no images')
    if large := [image['id'] for image in content['images'] if image['height'] * image['width'] > PIXELS]:
        raise UserError(f'{path}: {len(large)} images are said to have more than 2^30 pixels (id {some(large)})')


def _describe(row: Row, key: str) -> str:
    own = f'(id {row.get("id")}) ' if key != 'id' else ''
    return own + (f'has {row[key]!r:.60}' if key in row else 'lacks it')


def some(items: Sequence[Any], most: int = SHOWN) -> str:
    """The first of some items, as text in one line."""
    return ', '.join(map(plain, items[:most])) + (', …' if len(items) > most else '')


def plain(item: Any, most: int = 300) -> str:
    """An item as text that is one line and not endless, whatever a file holds."""
    text = str(item) if str(item).isprintable() else ascii(item)
    return text if len(text) <= most else f'{text[:most]}…'


def check_classes(content: Content, path: Path, classes: str | Sequence[str]) -> str | None:
    """Compare a config's classes with a file's categories.

    mmdet takes the categories whose name is in ``classes``, in the file's order, and ignores names that it does not
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
    if not _are_finite([x, y, w, h, annotation['area']]):
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


def _are_finite(numbers: Sequence[float]) -> bool:
    """Whether numbers, together as well, are finite floats; a whole number can be too large for one."""
    try:
        return math.isfinite(math.fsum(map(abs, numbers)))
    except OverflowError:
        return False


def _is_polygon(points: Any, reach: float) -> bool:
    """Whether ``[x, y, x, y, …]`` are at least 3 points within reach of the image."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2 or not all(map(_is_number, points)):
        return False
    return _are_finite(points) and max(map(abs, points)) <= reach


def _is_rle(rle: Row, height: int, width: int) -> bool:
    """Whether an RLE covers its image exactly; of one that does not, decoders read or write beyond their memory."""
    counts = rle.get('counts')
    if isinstance(counts, str):
        counts = _decompress(counts.encode())
    size = rle.get('size')
    if size != [height, width] or not all(map(_is_whole, size)) or not isinstance(counts, list):
        return False
    return all(_is_whole(count) and count >= 0 for count in counts) and sum(counts) == height * width


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
