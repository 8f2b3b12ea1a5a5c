"""Looks at the data of a run before the run: says what is wrong, and puts aside the objects that no one can use."""

from __future__ import annotations

import json
import os
import warnings
from codecs import BOM_UTF8
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict

from ..config import image_folder, local_file, require_data
from ..errors import UserError
from ..files import write_atomically
from ..ranks import join_ranks, once
from .annotations import (
    IGNORED,
    NOT_TRAINED_ON,
    check_classes,
    read_coco,
    require_coco,
    some,
    sort_out,
    summarise,
)
from .class_data import require_classes
from .images import compare_sizes, require_images
from .parsed import hold
from .pickles import require_plain_pickles


class _Split(NamedTuple):
    """What a run reads of ``train``, ``val`` or ``test``."""

    name: str
    datasets: list[ConfigDict]  # those in COCO's format
    metrics: list[ConfigDict]
    with_masks: bool

    def readers(self) -> dict[Path, list[ConfigDict]]:
        """By annotation file: the configs that name it."""
        by_file: dict[Path, list[ConfigDict]] = {}
        for config in (*self.datasets, *self.metrics):
            if path := local_file(config):
                by_file.setdefault(path.resolve(), []).append(config)
        return by_file


def prepare_data(cfg: Config, *splits: str) -> None:
    """Check the annotations and images that a run will read, once, and warn of what a run can go on with.

    Objects that mmdet or the evaluation cannot use (:mod:`~adn_mmdet.datasets.annotations` lists them) are left
    out: the rest is written to ``cfg.work_dir/annotations/`` and the config pointed to it. Otherwise nothing is written
    or changed. Only data sets that are read as mmdet's CocoDataset reads them are looked into, and mmpretrain's for
    their classes. Under a launcher the first rank of each machine does the work, and all ranks learn of it.

    Args:
        cfg: a config with a work folder.
        splits: of ``train``, ``val`` and ``test``; those that the config does not have are passed over.

    Raises:
        UserError: the data cannot be used.
        SystemExit: on the other ranks, then.
    """
    present = [_read_split(cfg, name) for name in splits if cfg.get(f'{name}_dataloader')]
    join_ranks(cfg)
    read = [cfg[f'{name}_dataloader'].dataset for name in splits if cfg.get(f'{name}_dataloader')]
    leaves = [leaf for dataset in read for leaf in _leaves(dataset)]
    for dataset in leaves:
        require_plain_pickles(dataset)
    require_classes(cfg, leaves, [*_leaves(cfg.train_dataloader.dataset)] if cfg.get('train_dataloader') else [])
    copies = once(lambda: [_check_split(cfg, split) for split in present], a_machine=True)
    for split, moved in zip(present, copies):
        for path, readers in split.readers().items():
            for config in readers:
                config.ann_file = moved.get(path, config.ann_file)


def _read_split(cfg: Config, name: str) -> _Split:
    dataloader = cfg[f'{name}_dataloader']
    evaluator = cfg.get(f'{name}_evaluator') or []
    metrics = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
    datasets = [dataset for dataset in _leaves(dataloader.dataset) if _is_coco(dataset)]
    if name == 'train':
        metrics = []
    return _Split(name, datasets, metrics if datasets else [], _needs_masks(cfg, name, datasets, metrics))


def _leaves(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The configs of the data sets inside wrappers."""
    inner = dataset.get('datasets') or [part for part in [dataset.get('dataset')] if part]
    for part in inner:
        yield from _leaves(part)
    if not inner:
        yield dataset


def _is_coco(dataset: ConfigDict) -> bool:
    """Whether a data set reads its file as CocoDataset does."""
    kind = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    methods = ('load_data_list', 'parse_data_info')
    return all(getattr(kind, method, None) is getattr(CocoDataset, method) for method in methods)


def _needs_masks(cfg: Config, name: str, datasets: list[ConfigDict], metrics: list[ConfigDict]) -> bool:
    if name == 'train' and _find(cfg.model, 'mask_head'):
        return True
    asked = [metric.get('metric') for metric in metrics]
    return any('segm' in names for names in asked if names) or any(any(_find(d, 'with_mask')) for d in datasets)


def _find(config: Any, key: str) -> list[Any]:
    """All values of a key in a config."""
    if isinstance(config, dict):
        own = [config[key]] if config.get(key) else []
        return own + [found for value in config.values() for found in _find(value, key)]
    if isinstance(config, (list, tuple)):
        return [found for value in config for found in _find(value, key)]
    return []


def _check_split(cfg: Config, split: _Split) -> dict[Path, str]:
    """Check all that a split reads.

    Returns:
        By annotation file: the copy to read instead.
    """
    require_data(cfg[f'{split.name}_dataloader'])
    copies = {}
    for path, readers in split.readers().items():
        if not path.is_file():
            raise UserError(
                f'there is no annotation file {path}: check {split.name}_evaluator and {split.name}_dataloader'
            )
        content = read_coco(path)
        is_evaluated = bool(split.metrics)
        require_coco(content, path, is_evaluated)
        for dataset in (reader for reader in readers if reader in split.datasets):
            _warn(check_classes(content, path, _class_names(dataset)))
            _check_num_classes(cfg, dataset)
            if not dataset.get('indices'):  # else not all images need to be there
                require_images(image_folder(dataset), content['images'])
                _warn(compare_sizes(image_folder(dataset), content['images']))
        if is_evaluated and any(annotation['id'] == 0 for annotation in content['annotations']):
            _warn(f'{path}: pycocotools counts an object with id 0 as missed even where it is found: start ids at 1')
        kept, faults = sort_out(content, path, split.with_masks, is_evaluated)
        message = f'{path}: objects that cannot be used are left out: {summarise(faults)}'
        if faults.keys() - (IGNORED if is_evaluated else NOT_TRAINED_ON) or _has_mark(path):
            copies[path] = _write_copy(cfg, path.stem, content | {'annotations': kept})
            message += f'. The rest is in {copies[path]}'
        _warn(message if faults else None)
        hold(copies.get(path, path), content | {'annotations': kept} if path in copies else content)
    return copies


def _class_names(dataset: ConfigDict) -> Any:
    kind = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    classes = dataset.get('metainfo', {}).get('classes', kind.METAINFO['classes'])
    if isinstance(classes, str) and os.path.isfile(classes):  # mmengine reads one name a line
        return Path(classes).read_text(encoding='utf-8').splitlines()
    return classes


def _check_num_classes(cfg: Config, dataset: ConfigDict) -> None:
    """Heads for fewer classes than there are cannot learn, those for more find classes that have no name."""
    if dataset.get('return_classes'):  # open vocabulary
        return
    classes = _class_names(dataset)
    heads = [head for name in ('bbox_head', 'mask_head') for head in _find(cfg.model, name)]
    wrong = {number for head in heads for number in _find(head, 'num_classes')} - {len(classes)}
    if wrong:
        raise UserError(
            f'num_classes is {some(sorted(wrong))} in the model, but the data set has {len(classes)} classes '
            f'({some(classes)}): make them agree'
        )


def _has_mark(path: Path) -> bool:
    """Whether a file begins with a byte order mark, which mmdet and pycocotools cannot read."""
    with open(path, 'rb') as file:
        return file.read(len(BOM_UTF8)) == BOM_UTF8


def _write_copy(cfg: Config, stem: str, content: dict[str, Any]) -> str:
    """Write what is left of an annotation file, named by its content: files of one name do not replace each other."""
    text = json.dumps(content).encode()
    path = Path(cfg.work_dir).absolute() / 'annotations' / f'{stem}_{sha256(text).hexdigest()[:16]}.json'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f'cannot write {path} ({error.strerror}): give another --work-dir') from error
    return str(path)


def _warn(message: str | None) -> None:
    if message:
        warnings.warn(message, stacklevel=2)
