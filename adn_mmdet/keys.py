"""The keys that a part of a config can have, so that a mistyped one is told from a new one."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from mmengine.registry import Registry, root
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner
from torch.utils.data import DataLoader

from .errors import UserError

# Who reads the parts that have no `type` of their own: classes and functions by their parameters, or names of keys.
TOP_LEVEL = (Runner, 'backend_args', 'compile', 'custom_imports', 'efficient_conv_bn_eval', 'find_unused_parameters',
             'model_wrapper_cfg', 'sync_bn', 'tta_model', 'tta_pipeline')  # fmt: skip
DATALOADER = (DataLoader, 'dataset', 'num_batch_per_epoch')
EVALUATION = ('type', 'fp16', 'skips', 'sizes', 'proposals', 'points')
READERS: dict[str, tuple[Any, ...]] = {
    '': TOP_LEVEL,
    'train_dataloader': DATALOADER,
    'val_dataloader': DATALOADER,
    'test_dataloader': DATALOADER,
    'train_cfg': (EpochBasedTrainLoop, IterBasedTrainLoop, 'by_epoch'),
    'val_cfg': EVALUATION,
    'test_cfg': EVALUATION,
    'optim_wrapper': ('accumulative_counts', 'clip_grad', 'constructor', 'optimizer', 'paramwise_cfg'),
    'optim_wrapper.clip_grad': (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_),
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'env_cfg.mp_cfg': ('mp_start_method', 'opencv_num_threads'),
    'env_cfg.dist_cfg': ('backend', 'timeout', 'init_backend'),
    'log_processor': (LogProcessor,),
    'randomness': ('seed', 'diff_rank_seed', 'deterministic'),
    'default_hooks': (
        'runtime_info',
        'timer',
        'sampler_seed',
        'logger',
        'param_scheduler',
        'checkpoint',
        'visualization',
        'exact_resume',
        'finite_loss',
        'loss_scale',
        'preemption',
    ),  # fmt: skip
}
OF_ANY_PART = {'type', '_delete_', '_scope_', 'requires_grad'}  # the last of mmcv's norms
FREE = {'metainfo', 'data_prefix', 'backend_args', 'custom_keys'}  # any key goes


def nearest(name: str, known: Iterable[str]) -> str:
    """``': did you mean …?'``; empty where nothing is near."""
    near = difflib.get_close_matches(name, sorted(set(known) - {name}), n=1)
    return f': did you mean {near[0]}?' if near else ''


def parts(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Every part of a config and its dotted path, outer ones first."""
    yield path, value
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, entry in items:
        yield from parts(entry, f'{path}.{key}' if path else str(key))


def registered(name: str) -> list[Any]:
    """All classes and functions that are registered by a name, in any scope."""
    name = name.rpartition('.')[2]
    return [registry.module_dict[name] for registry in registries() if name in registry.module_dict]


def registries() -> list[Registry]:
    """mmengine's registries and, as far as they are imported, those of mmdet and others below them."""
    found = [registry for registry in vars(root).values() if isinstance(registry, Registry)]
    for registry in found:  # grows
        registry.import_from_location()
        found.extend(registry.children.values())
    return found


def parameters(reader: Any) -> set[str] | None:
    """The names of what a class or function takes; None where it takes any."""
    names: set[str] = set()
    for owner in inspect.getmro(reader) if inspect.isclass(reader) else [reader]:
        if owner is object:
            return names
        if inspect.isclass(owner) and not {'__init__', '__signature__'} & vars(owner).keys():
            continue
        is_plain = inspect.isclass(owner) and '__signature__' not in vars(owner)
        try:
            own = inspect.signature(vars(owner)['__init__'] if is_plain else owner).parameters.values()
        except (TypeError, ValueError):  # compiled
            return None
        names |= {parameter.name for parameter in own}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own):
            return names
    return None


def known_keys(path: str, part: Mapping[str, Any], kind: Any) -> set[str] | None:
    """The keys that a part of a config can have.

    Args:
        path: where it is, dotted.
        part: as it is.
        kind: its ``type``, if any.

    Returns:
        None where there is no telling.
    """
    readers = list(READERS.get(path, ()))
    if kind is not None:
        readers += registered(kind) if isinstance(kind, str) else [kind]
    if not readers and (kind is not None or path.rpartition('.')[2] in FREE):
        return None
    names = OF_ANY_PART | part.keys()
    for reader in readers:
        taken = {reader} if isinstance(reader, str) else parameters(reader)
        if taken is None:
            return None
        names |= taken
    return names


def require_known(config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Make sure that overrides by dotted key change something that is there, or that whoever reads that part takes.

    Raises:
        UserError: one does not; says the nearest key.
    """
    for option in options:
        part: Any = config
        path = ''
        for name in option.split('.'):
            if isinstance(part, (list, tuple)):
                if name not in map(str, range(len(part))):
                    raise UserError(f'--cfg-options {option}: {path} is a list of {len(part)}, which has no {name}')
                if option == f'{path}.{name}':  # which mmengine cannot do
                    raise UserError(f'--cfg-options {option}: give the whole list, {path}=[…]')
                part = part[int(name)]
            elif not isinstance(part, Mapping):
                if f'{path}._delete_' in options:
                    break
                raise UserError(f'--cfg-options {option}: {path} is {part!r:.60}, which has no keys')
            elif name in part and f'{path}._delete_' not in options:
                part = part[name]
                if not path and not isinstance(part, (dict, list)) and name not in (parameters(Runner) or {name}):
                    _warn_of_variable(config, name)
            else:
                _require_key(option, name, path, part, options)
                break  # what is in a new part is for those who read it
            path = f'{path}.{name}' if path else name


def _warn_of_variable(config: Mapping[str, Any], name: str) -> None:
    sections = {key: value for key, value in config.items() if key in (parameters(Runner) or ())}
    places = [path for path, value in parts(sections) if value == config[name]]
    warnings.warn(
        f'--cfg-options {name}: a variable of the config file, which was used when it was read: set what it went into'
        + (f', such as {places[0]}' if places else ''),
        stacklevel=2,
    )


def _require_key(option: str, name: str, path: str, part: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    kind = options.get(f'{path}.type', part.get('type'))
    known = known_keys(path, part, kind)
    is_new_hook = path == 'default_hooks' and f'{path}.{name}.type' in options
    if known is not None and name not in known and not is_new_hook:
        owner = f'{path} ({kind})' if isinstance(kind, str) else path or 'the config'
        hint = nearest(name, known) or '; a key that is really new belongs in a config file'
        raise UserError(f'--cfg-options {option}: {owner} has no {name}{hint}')
