"""The input size of a config's detector: read from its test pipeline, and put into it.

The size of an operating point is the short side of the image in pixels, after resizing and before padding.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from .config import coco_dataset
from .errors import UserError
from .operating_point import OperatingPoint

Step = dict[str, Any]
# What says how large an image becomes, of each transform that resizes (mmdet's, and mmpretrain's ResizeEdge).
SIDES = {
    'Resize': ('scale',),
    'ResizeEdge': ('scale',),
    'FixScaleResize': ('scale',),
    'ResizeShortestEdge': ('scale',),
    'FixShapeResize': ('width', 'height'),
}
ALONGSIDE = {
    'ResizeShortestEdge': 'max_size',
    'Pad': 'size',
    'CenterCrop': 'crop_size',
}  # what grows and shrinks with them
COCO, AS_COUNTED = (1333, 800), (1280, 800)  # its usual scale, and what the papers count it as


def resized(pipeline: Sequence[Step], size: int | None) -> list[Step]:
    """A test pipeline that resizes to another size.

    The limit of the long side, and what images are padded to, change in proportion and are rounded to whole pixels.
    Whether the ratio of an image is kept, how it is interpolated, and the multiple that it is padded to stay.

    Args:
        pipeline: the steps of a config's test pipeline; they are left as they are.
        size: the short side in pixels; None takes the config's own.

    Raises:
        UserError: the pipeline has no step that resizes, or one that cannot be told a size.
    """
    steps = copy.deepcopy(list(pipeline))
    if size is None:
        return steps
    step = _resizing(steps)
    factor = size / min(_sides(step))
    for name in SIDES[_type(step)]:
        step[name] = _scaled(step[name], factor)
    for other in _steps(steps):
        beside = ALONGSIDE.get(_type(other))
        if beside and other.get(beside):
            other[beside] = _scaled(other[beside], factor)
    return steps


def pipeline_at(cfg: Config, size: int | None = None) -> list[Step]:
    """The test pipeline of a config at a size; see :func:`resized`."""
    return resized(coco_dataset(cfg.test_dataloader).pipeline, size)


def for_images(pipeline: Sequence[Step]) -> list[Step]:
    """A test pipeline for images that stand alone, by path or as arrays, as mmdet's DetInferencer makes it.

    Args:
        pipeline: begins with a step that loads an image.

    Raises:
        UserError: it does not.
    """
    first, *rest = copy.deepcopy(list(pipeline))
    if not _type(first).startswith(('LoadImage', 'InferencerLoader')):
        raise UserError(f'the test pipeline should begin with LoadImageFromFile, but begins with {_type(first)}')
    first['type'] = 'mmdet.InferencerLoader'
    for step in rest:
        if 'meta_keys' in step:
            step['meta_keys'] = tuple(key for key in step['meta_keys'] if key != 'img_id')
    return [first, *rest]


def own_point(cfg: Config) -> OperatingPoint:
    """What an operating point leaves to a config: the size of its test pipeline, and the proposals of its RPN.

    Returns:
        A point without a skip code; its size is None where the test pipeline has none that is clear, its proposals are
        None where there is no RPN.
    """
    settings = (cfg.model.get('test_cfg') or {}).get('rpn') or {}
    proposals = settings.get('max_per_img') if cfg.model.get('rpn_head') else None
    with contextlib.suppress(UserError):
        return OperatingPoint(None, own_size(cfg), proposals)
    return OperatingPoint(None, None, proposals)


def own_size(cfg: Config) -> int:
    """The short side, in pixels, that a config's test pipeline resizes to.

    Raises:
        UserError: as :func:`resized` does.
    """
    return min(_sides(_resizing(coco_dataset(cfg.test_dataloader).pipeline)))


def default_input_size(cfg: Config, size: int | None = None) -> tuple[int, int]:
    """Height and width at which a config's model is counted.

    What its test pipeline crops to or else its scale, rounded up to the multiple that images are padded to; COCO's
    usual (1333, 800) counts as 1280×800, as in the papers, and so does a pipeline that has no scale.

    Args:
        cfg: a config.
        size: the short side in pixels; None takes the config's own.

    Raises:
        UserError: ``size`` is given, and the test pipeline cannot be told one.
    """
    pipeline = coco_dataset(cfg.test_dataloader).pipeline
    try:
        width, height = own = _sides(_resizing(pipeline))
    except UserError:
        if size is not None:
            raise
        width, height = own = [*COCO]
    if {width, height} == set(COCO):
        width, height = AS_COUNTED
    if crops := [step['crop_size'] for step in pipeline if _type(step) == 'CenterCrop']:
        width, height = crops[-1] if isinstance(crops[-1], (list, tuple)) else (crops[-1], crops[-1])
    factor = size / min(own) if size else 1
    divisor = cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    height, width = (math.ceil(round(side * factor) / divisor) * divisor for side in (height, width))
    return height, width


def _resizing(pipeline: Sequence[Step]) -> Step:
    """The one step that resizes, to sides in pixels."""
    found = [step for step in _steps(pipeline) if 'resize' in _type(step).lower()]
    names = ', '.join(map(_type, found or _steps(pipeline)))
    if len(found) != 1:
        raise UserError(f'the test pipeline has {len(found) or "no"} steps that resize ({names}): leave the size out')
    sides = _sides(found[0])
    if not (sides and all(type(side) is int and side > 0 for side in sides)):
        raise UserError(
            f'{names} of the test pipeline cannot be told a size: leave the size out, or resize by '
            f'{", ".join(SIDES)} with sides in pixels'
        )
    return found[0]


def _steps(pipeline: Sequence[Step]) -> Iterator[Step]:
    """The steps of a pipeline, and those inside of broadcasters."""
    for step in pipeline:
        yield step
        inner = step.get('transforms') or ()
        if all(isinstance(entry, dict) for entry in inner):
            yield from _steps(inner)


def _type(step: Step) -> str:
    kind = step['type']
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def _sides(step: Step) -> list[Any]:
    """Width and height as a step names them; those of ResizeShortestEdge are the long and the short side."""
    sides: list[Any] = []
    for name in SIDES.get(_type(step), ()):
        value = step.get(name)
        sides += value if isinstance(value, (list, tuple)) else [value]
    if _type(step) == 'ResizeShortestEdge':
        short = min(sides)
        sides = [step.get('max_size') or short, short]
    return sides * 2 if len(sides) == 1 else sides


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(round(side * factor) for side in value)
    return round(value * factor)
