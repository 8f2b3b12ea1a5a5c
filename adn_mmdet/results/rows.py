"""Rows of results in files: ``sub_nets.json`` of tools/test.py, and latency files of tools/benchmark.py."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_atomically

SCHEMA = 1
FILE_NAME = 'sub_nets.json'

Row = dict[str, Any]

Checks = Mapping[str, Callable[[Any], bool]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_code_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch('[FT]+', value) is not None)


SUB_NETS_RUN: Checks = {
    'name': _is_text,
    'checkpoint_sha256': _is_text_or_null,
    'annotations_sha256': _is_text_or_null,
    'classes': _is_list_of_text,
    'num_images': _is_count,
    'input_size': _is_size,
}
LATENCY_RUN: Checks = {
    'name': _is_text,
    'checkpoint_sha256': _is_text_or_null,
    'device': _is_text,
    'threads': _is_count,
    'batch_size': _is_count,
    'input_size': _is_size,
    'amp': _is_flag,
    'channels_last': _is_flag,
    'compile': _is_flag,
}


def read_sub_nets(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the results of tools/test.py.

    Args:
        path: a ``sub_nets.json``, or the work folder that holds it.

    Returns:
        ``{schema, run, rows}``.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    return _read(path, None, SUB_NETS_RUN, {'skip': _is_code_or_null, 'gmacs': _is_positive}, 'tools/test.py')


def read_latency(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a latency file of tools/benchmark.py.

    Returns:
        ``{schema, kind, run, rows}``.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    row_checks = {'skip': _is_code_or_null, 'ms': _is_positive}
    return _read(Path(path), 'latency', LATENCY_RUN, row_checks, 'tools/benchmark.py latency --json')


def add_row(work_dir: str | os.PathLike[str], run: dict[str, Any], row: Row) -> list[Row]:
    """Add one sub-network's row to ``WORK_DIR/sub_nets.json``, in place of an earlier one of the same code.

    Args:
        work_dir: where the file is.
        run: what the numbers depend on (hashes, classes, …), beside ``name`` and ``config``; rows of another run are
            dropped.
        row: ``skip``, metrics (fractions of 1, unrounded; None where a size has no object) and costs.

    Returns:
        All rows of this run, from the super-net to the base-net.
    """
    rows = [other for other in held_rows(work_dir, run) if other['skip'] != row['skip']]
    rows = sorted([*rows, row], key=lambda entry: entry['skip'] or '')
    content = {'schema': SCHEMA, 'run': run, 'rows': rows}
    write_atomically(Path(work_dir) / FILE_NAME, json.dumps(content, indent=2).encode())
    return rows


def held_rows(work_dir: str | os.PathLike[str], run: dict[str, Any]) -> list[Row]:
    """The rows in ``WORK_DIR/sub_nets.json`` that are of this run; none where it is of another one."""
    path = Path(work_dir) / FILE_NAME
    held = read_json(path, 'remove it, or give another work folder') if path.exists() else {}
    is_same_run = held.get('schema') == SCHEMA and _without_names(held.get('run', {})) == _without_names(run)
    return held['rows'] if is_same_run else []


def _without_names(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in ('name', 'config')}


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: of the file.
        remedy: what to do if it does not, for the message.

    Raises:
        UserError: there is no such file, or it is empty, cut off, or no JSON object.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is no text'
        raise UserError(f'cannot read {path} ({reason}): {remedy}') from error
    if not text.strip():
        raise UserError(f'{path} is empty: {remedy}')
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f'{path} is not whole JSON ({error}): {remedy}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no JSON object: {remedy}')
    return content


def _read(path: Path, kind: str | None, run: Checks, row: Checks, writer: str) -> dict[str, Any]:
    remedy = f'write it with {writer}'
    content = read_json(path, remedy)
    if content.get('kind') != kind or not {'schema', 'run', 'rows'} <= content.keys():
        raise UserError(f'{path} is not a file of {writer}, which holds schema, run and rows')
    if content['schema'] != SCHEMA:
        raise UserError(f'{path} has schema {content["schema"]!r}, but {SCHEMA} is read: {remedy}')
    _check(path, 'run', content['run'], run, remedy)
    rows = content['rows']
    if not (isinstance(rows, list) and rows):
        raise UserError(f'{path} has no rows: {remedy}')
    for number, entry in enumerate(rows):
        numbers = dict.fromkeys(entry, _is_number_or_null) if isinstance(entry, dict) else {}
        _check(path, f'rows[{number}]', entry, {**numbers, **row}, remedy)
    codes = [entry['skip'] for entry in rows]
    if len(set(codes)) < len(codes) or len({len(code or '') for code in codes}) > 1:
        raise UserError(f'{path} has the skip codes {codes}: each should be there once, and all of one length')
    return content


def _check(path: Path, place: str, part: Any, checks: Checks, remedy: str) -> None:
    """Make sure that a part of a file has what it should have."""
    if not isinstance(part, dict):
        raise UserError(f'{path}: {place} is no JSON object, {remedy}')
    for key, is_valid in checks.items():
        if key not in part:
            raise UserError(f'{path}: {place} lacks {key}, {remedy}')
        if not is_valid(part[key]):
            raise UserError(f'{path}: {place} has the {key} {json.dumps(part[key])[:60]}, {remedy}')
