"""What differs between a checkpoint's training and the config that goes on from it: what wins, what cannot go on."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper

from ..config import literal
from ..errors import UserError

COMPARED = (
    'model',
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'custom_hooks',
)
SAVED = ('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg', 'param_scheduler', 'auto_scale_lr')  # it wins here
KIND = (('optim_wrapper', 'optimizer', 'type'), ('train_cfg', 'type'), ('train_cfg', 'by_epoch'))
NO_MATTER = {'init_cfg', 'num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory'}
MOST = 8  # that are listed

Difference = tuple[str, Any, Any]  # a dotted name, the checkpoint's value, the config's


def read_settings(text: Any) -> dict[str, Any]:
    """The settings in a config as mmengine prints it, without running anything: nobody vouches for a checkpoint.

    Args:
        text: assignments of literals and ``dict(…)``; what is neither stays text; what is no Python has none.
    """
    settings = {}
    try:
        for statement in ast.parse(text).body if isinstance(text, str) else ():
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                settings[statement.targets[0].id] = _value(statement.value)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}
    return settings


def _value(node: ast.expr) -> Any:
    try:
        return literal(node)
    except (ValueError, TypeError):
        return ast.unparse(node)


def require_same_kind(text: Any, cfg: Config, path: str) -> None:
    """Refuse to go on with another kind of optimiser or loop than a checkpoint's: mmengine would mix the two.

    Args:
        text: the config in the checkpoint.
        cfg: the config that resumes it.
        path: the checkpoint, for the message.

    Raises:
        UserError: says which.
    """
    settings = read_settings(text)
    for keys in KIND if settings else ():
        before, now = (_class_name(_look_up(config, keys)) for config in (settings, cfg))
        if before != now and 'None' not in (before, now):
            raise UserError(
                f'{path} was trained with {".".join(keys)}={before}, the config has {now}: it cannot go on so; '
                f'set that back, or start from its weights alone with load_from={path}'
            )


def _look_up(config: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping | Config) else None
    return config


def _class_name(kind: Any) -> str:
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def describe_differences(text: Any, cfg: Config, path: str) -> list[str]:
    """One line for what stays as it was saved whatever the config says, one for what the config changes.

    Args:
        text: the config in the checkpoint.
        cfg: the config that resumes it.
        path: the checkpoint.
    """
    old, new = read_settings(text), read_settings(cfg.pretty_text)
    if not old or not new:
        return []
    found = [one for name in COMPARED for one in _compare(name, old.get(name), new.get(name))]
    saved = [one for one in found if one[0].startswith(SAVED)]
    others = [one for one in found if one not in saved]
    lines = []
    if saved:
        lines.append(
            f'as saved in {path}, not as the config says: {_listed(saved, "{0}={1} (not {2})")}; '
            'for other values start a new training from its weights with load_from'
        )
    if others:
        lines.append(f'as the config says, other than in {path}: {_listed(others, "{0}={2} (was {1})")}')
    return lines


def _listed(differences: list[Difference], form: str) -> str:
    parts = [form.format(name, _short(old), _short(new)) for name, old, new in differences[:MOST]]
    return ', '.join(parts) + (f' and {len(differences) - MOST} more' if len(differences) > MOST else '')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _compare(name: str, old: Any, new: Any) -> Iterator[Difference]:
    """Where two trees differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in (key for key in {**old, **new} if key not in NO_MATTER):
            yield from _compare(f'{name}.{key}', old.get(key), new.get(key))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for index, (before, now) in enumerate(zip(old, new)):
            yield from _compare(f'{name}.{index}', before, now)
    elif old != new:
        yield name, old, new


def require_fitting_state(content: Mapping[str, Any], wrapper: OptimWrapper, schedulers: Any, path: str) -> None:
    """Refuse the state of an optimiser or of schedules other than those that were built.

    torch and mmengine copy one kind's state over another's, and as many schedules as both have.

    Args:
        content: the checkpoint.
        wrapper: of the optimiser, or of several by name.
        schedulers: a list, lists by name, or None.
        path: the checkpoint, for the message.

    Raises:
        UserError: it is another one's; says what differs.
    """
    by_name = schedulers if isinstance(schedulers, dict) else {'': schedulers or []}
    built = {name: [one.state_dict() for one in many] for name, many in by_name.items()}
    saved = content.get('param_schedulers') or []
    saved = saved if isinstance(saved, dict) else {'': saved}
    outlines = {
        'another optimiser': (_outline(content['optimizer']), _outline(wrapper.state_dict())),
        'other schedules': tuple(
            {name: [sorted(one) for one in states[name]] for name in states} for states in (saved, built)
        ),
    }
    for part, (before, now) in outlines.items():
        for name, old, new in _compare(part, before, now):
            raise UserError(
                f'{path} holds the state of {part} than the config has ({name}: {_short(old)}, not '
                f'{_short(new)}): set that back, or start from its weights alone with load_from={path}'
            )


def _outline(state: Any) -> Any:
    """The names of all settings of the groups of weights, and how many weights those have.

    Left out: the state itself, and what a schedule or mixed precision adds.
    """
    if isinstance(state, Mapping):
        names = sorted(set(state) - {'state', 'base_param_settings', 'loss_scaler'})
        return {name: _outline(state[name]) for name in names if not name.startswith('initial_')}
    if isinstance(state, list):
        return [_outline(part) for part in state] if isinstance(next(iter(state), None), Mapping) else len(state)
    return 'set'
