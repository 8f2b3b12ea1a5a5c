"""Image classification data, looked at before a run: class folders, class files and lists of labels that do not match.

mmpretrain numbers the folders of a split by their sorted names, whatever they are called, and the classes of a config
by their order. Where these differ between splits, or from each other, a run would go on with wrong labels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from ..errors import UserError
from .annotations import plain, some
from .images import require_images

HELP = 'put ImageNet there (train/ and val/, each with a folder of images a class), or change data_root in the config'


def require_classes(cfg: Config, datasets: Sequence[ConfigDict], trained_on: Sequence[ConfigDict] = ()) -> None:
    """Make sure that the classes of mmpretrain's data sets, of their files and of the model are the same.

    Args:
        cfg: a config whose default scope is set.
        datasets: the configs of its data sets; those of other kinds are passed over.
        trained_on: those of the training, whose class folders have to be the same, where they are there.

    Raises:
        UserError: they are not, or data is missing.
    """
    folders: dict[Path, list[str]] = {}
    for config in [*datasets, *(config for config in trained_on if _image_folder(config).is_dir())]:
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(config.type) if isinstance(config.type, str) else config.type
        if not hasattr(kind, 'class_to_idx'):  # of mmpretrain's BaseDataset
            continue
        classes = _class_names(config, kind)
        if hasattr(kind, '_find_samples') and '://' not in str(config.get('data_root')):  # of its CustomDataset
            root, folder = Path(config.get('data_root') or ''), _image_folder(config)
            if not folder.is_dir():
                raise UserError(f'there is no image folder {folder}: {HELP}')
            if labels := _label_file(config):
                _require_labels(root / labels, folder, classes)
            elif config.get('with_label', True):
                folders[folder] = _class_folders(folder, classes)
        _require_num_classes(cfg, classes or next(iter(folders.values()), None))
    _require_same(folders)


def _class_names(config: ConfigDict, kind: Any) -> list[str] | None:
    """The names that a config says, or the data set's own; None where its folders say."""
    said = (config.get('metainfo') or {}).get('classes') or config.get('classes')
    classes = said or (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if not isinstance(classes, str):
        return None if classes is None else list(classes)
    if not os.path.isfile(classes):
        raise UserError(f'there is no class file {classes}: it should hold a name a line')
    return Path(classes).read_text(encoding='utf-8').splitlines()


def _image_folder(config: ConfigDict) -> Path:
    prefix = config.get('data_prefix') or {}
    prefix = prefix if isinstance(prefix, str) else prefix.get('img_path', '')
    return Path(config.get('data_root') or '') / (prefix or config.get('split', ''))


def _label_file(config: ConfigDict) -> str | None:
    """The list of images and labels that a data set reads, seen from its root; ImageNet's own where there is one."""
    own = f'meta/{config.get("split")}.txt'
    return config.get('ann_file') or (own if (Path(config.get('data_root') or '') / own).is_file() else None)


def _require_labels(path: Path, folder: Path, classes: Sequence[str] | None) -> None:
    """Make sure that each line of a list names an image that is there and a class by its number."""
    if not path.is_file():
        raise UserError(f'there is no annotation file {path}: {HELP}')
    if path.suffix != '.txt':
        return
    images = []
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        name, _, label = line.strip().rpartition(' ')
        if not (name and label.isdecimal() and int(label) < (len(classes) if classes else float('inf'))):
            most = f' below {len(classes)}' if classes else ''
            raise UserError(f'{path}, line {number} should be an image and a label{most}, but is {plain(line, 60)}')
        images.append({'file_name': name})
    if not images:
        raise UserError(f'{path} lists no images')
    require_images(folder, images)


def _class_folders(folder: Path, classes: Sequence[str] | None) -> list[str]:
    """The folders of a split by the number that they get as a class."""
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))
    if not found:
        raise UserError(f'{folder} has no folder of images a class: {HELP}')
    if classes and len(classes) != len(found):
        raise UserError(
            f'{folder} has {len(found)} class folders ({some(found)}), but the config has {len(classes)} classes '
            f'({some(classes)}): make them agree'
        )
    if classes and set(classes) == set(found) and list(classes) != found:
        raise UserError(
            f'classes are numbered by the sorted names of the folders in {folder} ({some(found)}), but the config '
            f'has them in another order ({some(classes)}): sort them'
        )
    return found


def _require_same(folders: Mapping[Path, Sequence[str]]) -> None:
    first, names = next(iter(folders.items()), (Path(), []))
    for other, others in folders.items():
        for one, another in zip_longest(names, others):
            if one != another:
                raise UserError(
                    f'{first} and {other} should have the same class folders, since these are numbered by their '
                    f'sorted names, but differ: {one or "none"} and {another or "none"}'
                )


def _require_num_classes(cfg: Config, classes: Sequence[str] | None) -> None:
    parts = {'model.head': cfg.model.get('head'), 'data_preprocessor': cfg.get('data_preprocessor')}
    for name, part in parts.items():
        number = (part or {}).get('num_classes')
        if classes and number not in (None, len(classes)):
            raise UserError(
                f'{name}.num_classes is {number}, but the data set has {len(classes)} classes ({some(classes)}): '
                'make them agree'
            )
