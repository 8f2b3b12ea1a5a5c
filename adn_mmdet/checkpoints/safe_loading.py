"""Reads checkpoint files: nothing in them runs, damage is noticed, and so are tensors that no training leaves.

mmengine pickles its log history into checkpoints, which torch >= 2.6 refuses to load by default; the maintained fork
then falls back to unpickling anything. Importing this module replaces mmengine's loader of local files by
:func:`load_from_local` on both, so that ``--resume``, ``init_detector`` and ``DetInferencer`` load through it;
:mod:`.web` does the same for what comes from elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..errors import UserError
from .rebuilt import ALLOWED

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
COUNTERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
DIRECTORY = 0x10  # an attribute in zip archives; torch takes a tensor that is marked so for empty
SETTLED = 2.0  # seconds after a change within which another one may leave a file's time as it is

_WHOLE: set[tuple[int, ...]] = set()  # the files that were found to be whole
_ALLOWING = threading.Lock()  # torch has one allow-list for all threads


@contextlib.contextmanager
def _allowing() -> Iterator[None]:
    """Let torch unpickle ``ALLOWED``, whatever else was allowed before: mmengine's fork allows ``getattr`` itself."""
    with _ALLOWING:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(ALLOWED):
                yield
        finally:
            torch.serialization.add_safe_globals(others)


def load_from_local(path: str | os.PathLike[str], map_location: Any = None, *, trust: bool = False) -> dict[str, Any]:
    """Read a local checkpoint.

    Args:
        path: a file that torch.save wrote.
        map_location: as in torch.load.
        trust: unpickle whatever it holds, which may run code of whoever made the file.

    Raises:
        UserError: the file is missing, cut off, damaged, no checkpoint, holds an object that is not on the allow-list,
            or a tensor as of :func:`require_sound`; unless ``trust`` is set, nothing in it has run.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f'a checkpoint is given by its path, but got {path!r}')
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise UserError(f'there is no checkpoint {path}: check the path')
    try:
        with open(path, 'rb') as file:
            has_checksums = _require_whole(file, path)
            with _allowing():
                content = torch.load(file, map_location=map_location, weights_only=not trust)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f'cannot read {path} ({error.strerror}): check its permissions') from error
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except Exception as error:  # bytes that are no pickle make the unpickler fail in any way
        text = ' '.join(str(error).split())
        if isinstance(error, MemoryError) or 'allocate memory' in text:
            raise UserError(
                f'{path} takes more memory than there is: free some, or use a smaller checkpoint'
            ) from error
        if 'CUDA' in text:  # saved on a GPU, loaded without map_location: the file is whole
            raise
        reason = f' ({text})' if trust else ''  # such as a class that is not installed here
        raise UserError(
            f'{path} is incomplete or no checkpoint at all{reason}: use the previous one, or download it again'
        ) from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint (a dict of weights)')
    require_sound(content, path)
    if not has_checksums:
        print_log(f'{path}: the format of torch < 1.6 has no checksums to notice damage by', 'current', logging.WARNING)
    return content


def _require_whole(file: BinaryIO, path: str) -> bool:
    """Compare the checksums that torch writes into its zip archives and never reads, once for a file and process.

    Returns:
        False where a file has none, because torch < 1.6 or something else wrote it.
    """
    stat = os.fstat(file.fileno())
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    is_zip = key in _WHOLE or file.read(4) == b'PK\x03\x04'  # which torch goes by as well
    if is_zip and key not in _WHOLE:
        with zipfile.ZipFile(file) as archive:
            folders = [part.filename for part in archive.infolist() if part.external_attr & DIRECTORY]
            damaged = archive.testzip() or next(iter(folders), None)
        if damaged:
            raise UserError(
                f'{path} is damaged: {damaged} in it is not what was saved: use the previous one, or download it again'
            )
        if time.time() - stat.st_mtime > SETTLED:
            _WHOLE.add(key)
    file.seek(0)
    return is_zip


def _refusal(path: str, reason: str) -> str:
    blocked = re.search(r'GLOBAL ([\w.]+)|getattr of .*', reason)
    if blocked is None:
        return f'{path} is no checkpoint that torch.save wrote: use the previous one, or download it again'
    return (
        f'{path} was refused: it holds {blocked.group(1) or blocked.group(0)}, which is no part of a checkpoint '
        'and could run code; nothing in it has run. Save its weights alone (torch.save(model.state_dict(), …)), '
        'or, if you know who made it, take a ResNet out of it with tools/convert_checkpoint.py --trust'
    )


def require_sound(content: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Refuse tensors that no training leaves: the one check of whatever is loaded.

    A tensor is dense, of real floating numbers that are finite, or of integers such as counters; a variance is at
    least 0.

    Args:
        content: weights by name, or a dict of such dicts, such as mmengine's checkpoints and files of norms.
        source: the file, for the message.

    Raises:
        UserError: one is not; names it, and says how many there are.
    """
    problems = {name: problem for name, value in _tensors(content) if (problem := _problem(name, value))}
    for name, problem in problems.items():
        raise UserError(
            f'{source}: {listed([name])} {problem} ({len(problems)} such weights): use an earlier checkpoint, '
            'or download it again'
        )


def listed(names: Iterable[Any]) -> str:
    """The first three names out of a file, so that they can be printed in one line."""
    texts = [str(name) for name in islice(names, 4)]
    shown = [text if text.isprintable() and len(text) < 100 else ascii(text[:100]) for text in texts[:3]]
    return ', '.join(shown) + (', …' if len(texts) > 3 else '')


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in what was read, by the names that lead to it; a crafted file may hold itself."""
    stack: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while stack:
        names, value = stack.pop()
        if isinstance(value, Tensor):
            yield '.'.join(names[1:] or names), value  # without `state_dict.`
        elif id(value) not in seen:
            seen.add(id(value))
            series = value if isinstance(value, (list, tuple, set)) else ()
            parts = value.items() if isinstance(value, Mapping) else enumerate(series)
            stack += [((*names, str(name)), part) for name, part in parts]


def _problem(name: str, value: Tensor) -> str:
    kinds = {'meta': value.is_meta, 'nested': value.is_nested, 'quantised': value.is_quantized}
    for kind, is_so in {**kinds, 'sparse': value.layout is not torch.strided}.items():
        if is_so:
            return f'is a {kind} tensor, not a dense one'
    if value.dtype in COUNTERS:
        return ''
    if value.dtype not in FLOATS:
        return f'is of {value.dtype}, not of real floating numbers or integers'
    # A sum is several times faster than isfinite, and finite only where all of its terms are; it may overflow.
    if not torch.sum(value).isfinite() and not torch.isfinite(value).all():
        return 'holds NaN or infinity'
    if name.endswith('running_var') and value.numel() and torch.min(value) < 0:
        return 'holds variances below zero'
    return ''


CheckpointLoader.register_scheme('', load_from_local, force=True)
