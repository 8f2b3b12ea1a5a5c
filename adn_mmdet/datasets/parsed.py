"""Annotation files that are parsed once, although the check, the data set and the metric of a run read them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..errors import UserError
from .images import name_unreadable

_HELD: ContextVar[dict[str, COCO] | None] = ContextVar('annotations_held', default=None)


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Let those who read an annotation file inside hand what it holds to the next one; nothing is held afterwards."""
    outer = _HELD.get()
    _HELD.set({})
    try:
        yield
    finally:
        _HELD.set(outer)


def hold(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Hand on what a file holds, to whoever reads it inside :func:`parsed_once`."""
    if (held := _HELD.get()) is not None:
        held[os.path.realpath(path)] = as_coco(content)


def as_coco(content: dict[str, Any]) -> COCO:
    """mmdet's COCO of what a file holds."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


def read_annotations(path: str) -> COCO:
    """The annotations in a local file."""
    held, key = _HELD.get(), os.path.realpath(path)
    if held is None:
        return COCO(path)
    if key not in held:
        held[key] = COCO(path)
    return held[key]


def build_dataset(config: ConfigDict) -> Any:
    """Build a data set that reads COCO's format from what :func:`parsed_once` has; leave another's config as it is.

    Raises:
        UserError: it is empty.
    """
    kind = DATASETS.get(config.type) if isinstance(config.type, str) else config.type
    reads_coco = getattr(kind, 'load_data_list', None) is CocoDataset.load_data_list and kind.COCOAPI is COCO
    if not reads_coco or config.get('backend_args') or config.get('lazy_init'):
        return config
    dataset = DATASETS.build({**config, 'lazy_init': True})
    dataset.COCOAPI = read_annotations
    try:
        dataset.full_init()
    except ValueError as error:
        if dataset.data_list:
            raise
        raise UserError(f'{config.ann_file}: no image is left to read, check indices and filter_cfg') from error
    del dataset.COCOAPI
    return dataset


def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
    """mmengine's data loader of what :func:`parsed_once` has, which says what image it cannot use."""
    dataloader = {**dataloader, 'dataset': build_dataset(dataloader['dataset'])}
    return name_unreadable(Runner.build_dataloader(dataloader, *args, **kwargs))
