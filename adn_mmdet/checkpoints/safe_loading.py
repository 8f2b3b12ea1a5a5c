"""Reads checkpoint files without ever running what is in them: weights_only with an allow-list, for mmengine too.

mmengine pickles its log history into checkpoints, which torch >= 2.6 refuses to load by default; the maintained fork
then falls back to unpickling anything. Importing this module replaces mmengine's loader of local files by
:func:`load_from_local` on both, so that ``--resume``, ``init_detector`` and ``DetInferencer`` load through it.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ..errors import UserError


def history_buffer_method(owner: type, name: str) -> Callable[..., Any]:
    """What ``getattr`` may do in a checkpoint: name a public method of mmengine's HistoryBuffer, nothing else."""
    if owner is HistoryBuffer and not name.startswith('_') and name in vars(HistoryBuffer):
        return vars(HistoryBuffer)[name]
    raise pickle.UnpicklingError(f'getattr of {name!r} from {owner!r}')


def _allow_list() -> list[Any]:
    """What mmengine's log history, numpy numbers and command lines (which only hold attributes) are rebuilt from."""
    dtypes = {type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8', 'u1', 'bool')}
    reconstruct = np.zeros(0).__reduce__()[0]  # numpy's own, wherever this version keeps it
    scalar = np.float64(0).__reduce__()[0]
    by_name = [
        (function, f'numpy.{core}.multiarray.{name}')  # numpy 1 and numpy 2 name the same function differently
        for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
        for core in ('core', '_core')
    ]
    containers = [argparse.Namespace, HistoryBuffer, np.ndarray, np.dtype]
    return [*containers, *dtypes, *by_name, (history_buffer_method, 'builtins.getattr')]


def load_from_local(path: str | os.PathLike[str], map_location: Any = None, *, trust: bool = False) -> dict[str, Any]:
    """Read a local checkpoint.

    Args:
        path: a file that torch.save wrote.
        map_location: as in torch.load.
        trust: unpickle whatever it holds, which may run code of whoever made the file.

    Raises:
        UserError: the file is missing, cut off, no checkpoint, or holds an object that is not on the allow-list;
            unless ``trust`` is set, nothing in it has run.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise UserError(f'there is no checkpoint {path}: check the path')
    try:
        with torch.serialization.safe_globals(_allow_list()):
            content = torch.load(path, map_location=map_location, weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except Exception as error:  # bytes that are no pickle make the unpickler fail in any way
        if 'CUDA' in str(error):  # saved on a GPU, loaded without map_location: the file is whole
            raise
        reason = f' ({" ".join(str(error).split())})' if trust else ''  # such as a class that is not installed here
        raise UserError(
            f'{path} is incomplete or no checkpoint at all{reason}: use the previous one, or get it anew'
        ) from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint (a dict of weights)')
    return content


def _refusal(path: str, reason: str) -> str:
    blocked = re.search(r'GLOBAL ([\w.]+)|getattr of .*', reason)
    if blocked is None:
        return f'{path} is no checkpoint that torch.save wrote: use the previous one, or get it anew'
    return (
        f'{path} was refused: it holds {blocked.group(1) or blocked.group(0)}, which is no part of a checkpoint '
        'and could run code; nothing in it has run. Save its weights alone (torch.save(model.state_dict(), …)), '
        'or, if you know who made it, take a ResNet out of it with tools/convert_checkpoint.py --trust'
    )


CheckpointLoader.register_scheme('', load_from_local, force=True)
