"""Pickles that a data set reads, such as proposals: arrays and plain values, and nothing that could run code."""

from __future__ import annotations

import os
import pickle
from typing import Any

from mmengine.config import ConfigDict

from ..errors import UserError

SUFFIXES = ('.pkl', '.pickle')
ARRAYS = {
    ('_codecs', 'encode'),
    ('collections', 'OrderedDict'),
    ('numpy', 'dtype'),
    ('numpy', 'ndarray'),
    *((f'numpy.{core}.{module}', name) for core in ('core', '_core') for module, name in (
        ('multiarray', '_reconstruct'), ('multiarray', 'scalar'), ('numeric', '_frombuffer'))),
}  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f'it names {module}.{name}')
        return super().find_class(module, name)


def require_plain_pickles(dataset: ConfigDict) -> None:
    """Make sure that the pickles which the config of a data set names hold arrays and plain values alone.

    mmdet reads ``proposal_file``, and mmengine any ``ann_file``, by Python's pickle, which does what the file says.

    Raises:
        UserError: one holds something else, cannot be read, or is not a local file.
    """
    for key in ('proposal_file', 'ann_file'):
        path = dataset.get(key)
        if not isinstance(path, str) or not path.endswith(SUFFIXES):
            continue
        path = os.path.join(dataset.get('data_root') or '', path)
        if '://' in path:
            raise UserError(f'{key} {path} is a pickle, which could run code: download it, and name the local file')
        try:
            with open(path, 'rb') as file:
                _PlainUnpickler(file).load()
        except Exception as error:  # whatever a broken pickle raises
            raise UserError(
                f'{key} {path} cannot be read, or could run code ({error}): it should hold lists, dicts and arrays'
            ) from error
