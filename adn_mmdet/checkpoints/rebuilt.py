"""What mmengine's log history and numpy's numbers in a checkpoint are rebuilt as: numbers, by classes of this package.

Their own accept any state from a file: a HistoryBuffer replaces its methods for the whole process, and numpy's dtype
takes flags with which its arrays read and free what is no memory of theirs.
"""

from __future__ import annotations

import argparse
import pickle
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer


class Kind:
    """A numpy.dtype of numbers."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in 'biuf':
            raise pickle.UnpicklingError(f'a numpy array of {self.dtype}')

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ('<', '>'):
            self.dtype = np.dtype(f'{state[1]}{self.dtype.str[1:]}')


class Array(np.ndarray):
    """A numpy.ndarray of a file, empty until its numbers are known; saved again as numpy's own."""

    def __new__(cls, *_: Any) -> Array:  # noqa: D102
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        numbers = np.ndarray(tuple(shape), kind.dtype, bytes(content), order='F' if is_fortran else 'C')
        super().__setstate__(numbers.__reduce__()[2])

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()


def scalar(kind: Kind, content: bytes) -> Any:
    """A number of numpy's."""
    return np.frombuffer(content, kind.dtype, count=1)[0]


def no_bytes() -> bytes:
    """Those of an empty array."""
    return b''


class History(HistoryBuffer):
    """A HistoryBuffer of a file."""

    def __init__(self) -> None:
        raise pickle.UnpicklingError('a HistoryBuffer that was not saved by mmengine')

    def __setstate__(self, state: dict[str, Any]) -> None:
        numbers = [np.array(state[name]) for name in ('_log_history', '_count_history')]
        if any(values.ndim != 1 or values.dtype.kind not in 'biuf' for values in numbers):
            raise pickle.UnpicklingError('a HistoryBuffer of something else than numbers')
        HistoryBuffer.__init__(self, *numbers, max_length=int(state['max_length']))
        self.__class__ = HistoryBuffer


def history_method(owner: type, name: str) -> str:
    """What ``getattr`` does in a checkpoint: mmengine names the methods of HistoryBuffer, of which nothing is kept."""
    if owner is History and not name.startswith('_') and name in vars(HistoryBuffer):
        return name
    raise pickle.UnpicklingError(f'getattr of {name!r} from {owner!r}')


# By the names in the file. A command line, which training scripts save, only holds attributes.
ALLOWED: list[Any] = [
    argparse.Namespace,
    (History, f'{HistoryBuffer.__module__}.{HistoryBuffer.__name__}'),
    (history_method, 'builtins.getattr'),
    (no_bytes, 'builtins.bytes'),
    (Kind, 'numpy.dtype'),
    (Array, 'numpy.ndarray'),
    *((Array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),  # numpy 1 and 2
    *((scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
]
