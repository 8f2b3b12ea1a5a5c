"""The config that mmengine stores in a checkpoint, read as data: nothing in it runs, nothing it names is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import mmcv.ops
import mmengine.registry
from mmengine.config import ConfigDict
from mmengine.registry import Registry

from ..config import coco_dataset, literal, shown
from ..errors import UserError
from ..keys import parts

DATASET = ('type', 'metainfo', 'pipeline')  # what an inferencer needs of a data set, whose files it must not read
LONGEST = 1_000_000  # characters; configs have some ten thousand
SCOPES = ('mmdet', 'mmengine')  # another's registry would be imported
# The first evaluates one of its arguments as Python, the other runs a config file.
UNSAFE = ('CameraMotionCompensation', 'KnowledgeDistillationSingleStageDetector')


def config_of_checkpoint(checkpoint: Mapping[str, Any], path: str) -> ConfigDict:
    """What an inferencer needs of the config that a checkpoint was trained with.

    Args:
        checkpoint: what mmengine saved.
        path: of its file, for messages.

    Raises:
        UserError: there is no config in it, or one that is more than data.
    """
    runtime, meta = (_section(checkpoint, *keys) for keys in (('message_hub', 'runtime_info'), ('meta',)))
    text = runtime.get('cfg', meta.get('cfg'))
    advice = 'give the config that it was trained with, AnyDepthInferencer(CONFIG, CHECKPOINT)'
    if not isinstance(text, str):
        raise UserError(f'{path} holds no config: {advice}')
    try:
        return read_config_text(text)
    except UserError as error:
        raise UserError(f'the config in {path} {error}: {advice}') from error


def _section(content: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def read_config_text(text: str) -> ConfigDict:
    """Read what ``Config.pretty_text`` wrote: assignments of literals and of ``dict(key=value)``.

    Returns:
        ``model``, ``test_dataloader.dataset`` (of which only DATASET) and ``visualizer``.

    Raises:
        UserError: it holds anything else, or names what is not registered, since building that would import or run it.
    """
    if len(text) > LONGEST:
        raise UserError(f'has {len(text)} characters, but {LONGEST} at most are read')
    try:
        values = dict(map(_assignment, ast.parse(text).body))
        if not isinstance(values.get('model'), dict) or not isinstance(values.get('test_dataloader'), dict):
            raise UserError('lacks a model or a test_dataloader')
        dataset = coco_dataset(ConfigDict(values['test_dataloader']))
        kept = {key: dataset[key] for key in DATASET if key in dataset}
        config = ConfigDict(model=values['model'], test_dataloader=dict(dataset=kept))
        _require_known_types(config)
    except UserError:
        raise
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise UserError(f'cannot be read ({type(error).__name__})') from error
    config.visualizer = dict(type='DetLocalVisualizer')
    return config


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
        if len(statement.targets) == 1 and isinstance(target, ast.Name):
            return target.id, literal(statement.value)
    raise UserError(f'holds {shown(statement)}, which is no assignment of data')


def _require_known_types(config: Any) -> None:
    """Refuse what mmengine would import, and mmcv evaluate, to find it: a ``type`` that is not registered."""
    known = {name for registry in _registries() for name in registry.module_dict}.union(mmcv.ops.__all__).difference(
        UNSAFE
    )
    for path, value in parts(config):
        key = path.rpartition('.')[2]
        allowed = known if key == 'type' else SCOPES
        if key in ('type', '_scope_') and not (isinstance(value, str) and value in allowed):
            raise UserError(f'has {key}={value!r}, which is not one that is known and safe')


def _registries() -> Iterator[Registry]:
    """mmengine's, and those of mmdet and other packages below them."""
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry):
            yield from (root, *root.children.values())
