"""One line for what mmengine, mmdet, torch or the system raise where a config or a command line is to blame."""

from __future__ import annotations

import errno
import inspect
import linecache
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import build_from_cfg
from mmengine.runner import Runner

from .errors import UserError
from .keys import known_keys, nearest, parts, registered, registries

Frames = list[tuple[FrameType, int]]
DEBUG = 'ADN_DEBUG'
MOST_BASES = 50  # of a config, one below the other
SHOWN = 5
PLAIN_TYPES: dict[Any, type] = {'int': int, 'float': float, 'str': str, 'bool': bool}
LONGEST = 300  # characters of another's message
MEMORY = 'not enough memory ({}): take a smaller batch_size, fewer num_workers, smaller images or --amp'


def explain(error: BaseException) -> str:
    """Say in one line what was given, where, and what is near it.

    Args:
        error: what was raised, with its traceback: which part of which config was being built is read from there.
    """
    if isinstance(error, UserError):
        return str(error)
    frames = list(traceback.walk_tb(error.__traceback__))
    text = _text(error)
    if is_out_of_memory(error):
        return MEMORY.format(text or 'MemoryError')
    if isinstance(error, OSError) and error.errno:
        return _explain_system(error)
    if option := next((frame.f_locals.get('kv') for frame in _of(frames, DictAction.__call__)), None):
        return f'--cfg-options {option}: write KEY=VALUE, with brackets in pairs'
    owner, part, kind = _built(frames)
    config = _config(frames)
    if (found := re.search(r'unexpected keyword argument [\'"](\w+)', text)) and (key := found[1]):
        if key not in part:  # passed on by whoever was built
            path = next((path.rpartition('.')[0] for path in config if path.rpartition('.')[2] == key), '')
            part = config.get(path) or {}
            owner, kind = path or _place(frames), part.get('type')
        return f'{owner} takes no {key}{nearest(key, known_keys(owner, part, kind) or ())}'
    if found := re.search(r'(\S+) is not in the (.+) registry', text):
        return f'{owner}: there is no {found[1]} in {found[2]}{nearest(found[1], _alternatives(frames))}'
    if owner and 'must contain the key "type"' in text:
        return f'{owner} has no type{nearest("type", part)}'
    if wrong := _wrong_types(kind, part):
        return f'{owner}: {wrong}'
    where = f'{owner}: ' if owner else ''
    hint = _hint(config, text)
    return f'{where}{type(error).__name__}: {text}{hint} ({_place(frames)}; {DEBUG}=1 shows the traceback)'


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: of Python, of a GPU, or of torch on the CPU."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in _text(error)


def explain_reading(error: Exception, path: str) -> str:
    """The same for what is raised while a config is read.

    Args:
        error: what was raised.
        path: the config file.
    """
    text = _text(error)
    frames = list(traceback.walk_tb(error.__traceback__))
    files = [frame.f_locals['filename'] for frame in _of(frames, Config._file2dict)]  # the innermost base first
    if len(files) > MOST_BASES or len(list(_of(frames, Config._parse_lazy_import))) > MOST_BASES:
        return f'{path} cannot be read: its _base_ files name each other in a circle'
    where = files[0] if files else path
    if isinstance(error, UnicodeDecodeError) or 'null bytes' in text:
        return f'{where} is no text in UTF-8, so it is no config'
    if isinstance(error, FileNotFoundError):
        wanted = Path(error.filename or text.partition('"')[2].partition('"')[0])
        names = [file.name for file in wanted.parent.glob('*')] if wanted.parent.is_dir() else []
        return f'{path}: there is no {wanted}, which is its _base_{nearest(wanted.name, names)}'
    if isinstance(error, ModuleNotFoundError) and 'mmpretrain is not installed' in text:
        return f"{path} is a classifier's, for which mmpretrain is missing: pip install -e '.[cls]'"
    if isinstance(error, ImportError) and error.__cause__:
        return f'{path}: custom_imports: {_text(error.__cause__)}'
    if own := next((place for place in reversed(frames) if '_base_' in place[0].f_globals), None):  # a config's code
        frame, line = own
        where = f'{frame.f_code.co_filename}, line {line}'
        if attribute := re.search(r"has no attribute '(\w+)'", text):
            return f'{where}: there is no {attribute[1]}{nearest(attribute[1], frame.f_globals["_base_"])}'
    return f'{where} cannot be read: {type(error).__name__}: {text}'


def _text(error: BaseException) -> str:
    """The message in one line, without the tracebacks that data loaders put into theirs."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if 'Original Traceback' in text:
        text = text.strip().rpartition('\n')[2]
    text = ' '.join(text.split())
    if not text:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        text = linecache.getline(frame.f_code.co_filename, line).strip()
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}…'


def _explain_system(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'cannot write {error.filename or "a file"} ({error.strerror}): make room, then run it again'
    name = f' {error.filename}' if error.filename else ''
    return f'cannot read or write{name} ({error.strerror}): check the path and its permissions'


def _of(frames: Frames, function: Any) -> Iterator[FrameType]:
    """The frames in which a function runs, the innermost first."""
    return (frame for frame, _ in reversed(frames) if frame.f_code is function.__code__)


def _built(frames: Frames) -> tuple[str, Mapping[str, Any], Any]:
    """What was being built, or which hook ran: where and what it is, its config, and its class if that was found."""
    for frame in _of(frames, build_from_cfg):
        part, kind = frame.f_locals['cfg'], frame.f_locals.get('obj_cls')
        if isinstance(part, Mapping):
            name = getattr(kind, '__name__', None) or part.get('type')
            # Equal is enough: the runner builds from a copy.
            path = next((path for path, value in _config(frames).items() if path and value == part), '')
            return ' '.join(filter(None, (path, f'({name})' if name and path else name))), part, kind
    for frame in _of(frames, Runner.call_hook):
        return type(frame.f_locals.get('hook')).__name__, {}, None
    return '', {}, None


def _config(frames: Frames) -> dict[str, Any]:
    """The parts, by path, of the config that the outermost function with one has."""
    configs = (value for frame, _ in frames for value in frame.f_locals.values() if isinstance(value, Config))
    return dict(parts(next(configs, Config())._cfg_dict))


def _wrong_types(kind: Any, part: Mapping[str, Any]) -> str:
    """Which values are not of the plain type that a class or function says it takes, or has as default."""
    try:
        taken = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return ''
    wrong = []
    for name in part.keys() & taken.keys():
        said = taken[name].annotation
        wanted = PLAIN_TYPES.get(getattr(said, '__name__', said)) or PLAIN_TYPES.get(type(taken[name].default).__name__)
        if wanted and not isinstance(part[name], (int, float) if wanted is float else wanted):
            wrong.append(f'{name} should be of type {wanted.__name__}, but is {part[name]!r:.60}')
    return ', '.join(wrong)


def _hint(config: Mapping[str, Any], text: str) -> str:
    """What in a config may be behind an error that nothing else explains."""
    if 'None' not in text:
        return ''
    names = {name for registry in registries() for name in registry.module_dict}
    types = {f'{path}.type': value.get('type') for path, value in config.items() if isinstance(value, dict)}
    unknown = [
        f'{path} {name}{near}'
        for path, name in types.items()
        if isinstance(name, str) and not registered(name) and (near := nearest(name, names))
    ]
    nothing = [path for path, value in config.items() if value is None and '.' not in path]
    hints = {'nobody knows': unknown, 'None in the config': nothing}
    return ''.join(f'; {words}: {", ".join(found[:SHOWN])}' for words, found in hints.items() if found)


def _alternatives(frames: Frames) -> set[str]:
    """What is registered where a name was looked up."""
    frame = next(_of(frames, build_from_cfg), None)
    registry = frame.f_locals.get('registry') if frame else None
    names: set[str] = set()
    while registry is not None:
        names |= registry.module_dict.keys()
        registry = registry.parent
    return names


def _place(frames: Frames) -> str:
    frame, line = frames[-1]
    return f'{"/".join(Path(frame.f_code.co_filename).parts[-3:])}:{line}'
