"""Rows of results in files: ``sub_nets.json`` of tools/test.py, and latency files of tools/benchmark.py.

A row is about one operating point: ``skip`` is its skip code (null: a net that has no depth to choose), ``size`` the
short side in pixels that images are resized to, and ``proposals`` the number of region proposals an image (null: a
detector without them). ``size`` and ``proposals`` of the run are those of its config. Rows of schema 1 have neither,
and are read with null for both: they were tested at the config's own. ``bbox_mAP_resampled`` and
``segm_mAP_resampled`` hold the AP on drawn test sets, see :mod:`~adn_mmdet.results.intervals`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Generic, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import UserError
from ..files import locked, read_json, write_json

SCHEMA = 2
SCHEMAS = (1, 2)  # what is read
FILE_NAME = 'sub_nets.json'
POINT = ('skip', 'size', 'proposals')  # the keys of a row that tell it from all others of its run
METRICS = {'bbox_mAP': 'box AP', 'segm_mAP': 'mask AP', 'top1': 'top-1', 'top5': 'top-5'}
RESAMPLED = '_resampled'  # how the key ends that holds a metric of drawn test sets
# All that a row of a latency file adds to a tested one.
TIMES = (
    *('ms', 'ms_p90', 'ms_iqr', 'decode_ms', 'resize_ms', 'backbone_ms', 'neck_ms', 'heads_ms', 'post_ms'),
    *('ratio', 'ratio_low', 'ratio_high', 'depth_ratio', 'mj'),
)

Row = dict[str, Any]
PathLike = str | os.PathLike[str]
Code = NewType('Code', str)
Number = NewType('Number', float)
Share = NewType('Share', float)
Size = NewType('Size', list[int])  # height, width
Drawn = NewType('Drawn', str)  # base64 of numbers
Images = NewType('Images', dict[str, Any])  # see adn_mmdet.cost.images

BASE64 = re.compile('[A-Za-z0-9+/]{2,99999}={0,2}')
LIMIT = 1e12  # no count, cost or time is above it
IS_OF: dict[Any, Callable[[Any], bool]] = {
    type(None): lambda value: value is None,
    bool: lambda value: isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    int: lambda value: type(value) is int and 0 < value <= LIMIT,
    float: lambda value: IS_OF[Number](value) and value > 0,
    Number: lambda value: type(value) in (int, float) and abs(value) <= LIMIT,
    Share: lambda value: IS_OF[Number](value) and 0 <= value <= 1,
    Code: lambda value: isinstance(value, str) and re.fullmatch('[FT]{1,64}(-[FT]){0,9}', value) is not None,
    Drawn: lambda value: isinstance(value, str) and BASE64.fullmatch(value) is not None and len(value) % 4 == 0,
    Images: lambda value: isinstance(value, dict) and (value.get('sha256') is None or IS_OF[str](value['sha256'])),
    Size: lambda value: isinstance(value, list) and len(value) == 2 and all(map(IS_OF[int], value)),
}


@dataclass(frozen=True)
class SubNetsRun:
    """What the rows of one test depend on."""

    name: str
    checkpoint_sha256: str | None
    annotations_sha256: str | None
    classes: list[str]
    num_images: int
    input_size: Size
    settings_sha256: str | None = None
    norms_sha256: str | None = None
    size: int | None = None
    proposals: int | None = None
    runtime: str | None = None  # None is PyTorch
    artifact_sha256: str | None = None  # of the exported file that ran


@dataclass(frozen=True)
class LatencyRun:
    """What the rows of one latency file depend on."""

    name: str
    checkpoint_sha256: str | None
    device: str
    threads: int
    batch_size: int
    input_size: Size
    amp: bool
    channels_last: bool
    compile: bool
    rounds: int = 0
    images: Images | None = None
    runtime: str | None = None
    artifact_sha256: str | None = None
    size: int | None = None
    proposals: int | None = None

    @property
    def images_sha256(self) -> str | None:
        """Which images were timed; None of noise."""
        return self.images.get('sha256') if self.images else None


Run = TypeVar('Run', SubNetsRun, LatencyRun)


@dataclass(frozen=True)
class Results(Generic[Run]):
    """One run of a file.

    Attributes:
        path: of the file, or of its folder, as it was given.
        run: what the rows depend on; its texts can be printed.
        said: all that the file says of the run.
        rows: dicts with the keys of ``POINT``, metrics and costs.
        name: that of the run, or another one where two runs of one name stand in one table.
    """

    path: Path
    run: Run
    said: dict[str, Any]
    rows: list[Row]
    name: str


def read_sub_nets(path: PathLike) -> list[Results[SubNetsRun]]:
    """Read the results of tools/test.py.

    Args:
        path: a ``sub_nets.json``, or the work folder that holds it.

    Returns:
        The runs of the file, the one that was tested last first.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    with _one_line(file, remedy := 'write it with tools/test.py'):
        return [_results(SubNetsRun, 'gmacs', Path(path), *part) for part in _parts(file, None, remedy).items()]


def of_weights(runs: list[Results[SubNetsRun]], checkpoint_sha256: str | None) -> Results[SubNetsRun]:
    """Of a file's runs that of some weights as they are, without recalibrated norms; of several that of most images.

    One in PyTorch comes before one of an exported file.

    Raises:
        UserError: there is none.
    """
    plain = [results for results in runs if not results.run.norms_sha256]
    found = [results for results in plain if results.run.checkpoint_sha256 == checkpoint_sha256]
    if not found:
        kind = 'other weights' if plain else 'recalibrated norms'
        raise UserError(
            f'{runs[0].path} was measured with {kind}: test the weights that are to run, tools/test.py --skip all'
        )
    return max(found, key=lambda results: (results.run.runtime is None, results.run.num_images))


def read_latency(path: PathLike) -> Results[LatencyRun]:
    """Read a latency file of tools/benchmark.py.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    with _one_line(Path(path), remedy := 'write it with tools/benchmark.py latency --json'):
        return _results(LatencyRun, 'ms', Path(path), '', _parts(Path(path), 'latency', remedy)[''])


def add_row(work_dir: PathLike, run: dict[str, Any], row: Row) -> list[Row]:
    """Add one operating point's row to ``WORK_DIR/sub_nets.json``, in place of an earlier one of the same point.

    Rows of other runs stay in the file, in ``other_runs``. Any number of processes may add rows at a time.

    Args:
        work_dir: where the file is.
        run: what the numbers depend on (hashes, classes, …), beside ``name`` and ``config``.
        row: the keys of ``POINT``, metrics (fractions of 1, unrounded; None where a size has no object) and costs;
            what is not finite becomes None.

    Returns:
        All rows of this run, in the order of :func:`in_order`.

    Raises:
        UserError: the file that is there is no such file, or one of a newer version; it stays as it is.
        OSError: it cannot be written; what was there before is untouched.
    """
    path = Path(work_dir) / FILE_NAME
    row = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
    with locked(path, seconds=600):  # nobody takes long, but a row has
        mine, others = _held(path, run)
        rows = in_order([*(held for held in mine if point_of(held) != point_of(row)), dict.fromkeys(POINT) | row])
        write_json(path, {'schema': SCHEMA, 'run': run, 'rows': rows, **({'other_runs': others} if others else {})})
    return rows


def point_of(row: Row) -> tuple[str | None, int | None, int | None]:
    """Skip code, size and proposals of a row: its operating point."""
    return row['skip'], row.get('size'), row.get('proposals')


def main_metric(rows: Iterable[Row]) -> str:
    """The first of ``METRICS`` that one of the rows has; box AP where none has any."""
    known = {name for row in rows for name in METRICS if row.get(name) is not None}
    return next((name for name in METRICS if name in known), 'bbox_mAP')


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows of one run, the largest size first, of equal ones the most proposals, then from super-net to base-net."""
    numbers = 'size', 'proposals'
    return sorted(rows, key=lambda row: (*(-(row.get(key) or math.inf) for key in numbers), row['skip'] or ''))


def held_rows(work_dir: PathLike, run: dict[str, Any]) -> list[Row]:
    """The rows in ``WORK_DIR/sub_nets.json`` that are of this run; none where there are only others'.

    Raises:
        UserError: the file that is there is no such file, or one of a newer version.
    """
    return _held(Path(work_dir) / FILE_NAME, run)[0]


def _held(path: Path, run: dict[str, Any]) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of a run, those of schema 1 at the size and proposals of its config, and the other runs."""
    own = {key: run.get(key) for key in POINT}

    def facts(run: dict[str, Any]) -> dict[str, Any]:  # size and proposals of the config are in its settings
        return {key: value for key, value in run.items() if key not in ('name', 'config', *POINT)}

    with _one_line(path, remedy := 'remove it, or give another work folder'):
        parts = _parts(path, None, remedy).values() if path.exists() else ()
    runs = [{'run': part['run'], 'rows': part['rows']} for part in parts]
    mine = [
        own | {key: value for key, value in row.items() if value is not None or key not in POINT}
        for part in runs
        if facts(part['run']) == facts(run)
        for row in part['rows']
    ]
    return mine, [part for part in runs if facts(part['run']) != facts(run)]


@contextlib.contextmanager
def _one_line(path: Path, remedy: str) -> Iterator[None]:
    """Turn a ValueError that says what is wrong in a file into a UserError that says in which, and what to do."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f'{path}: {error}, {remedy}') from error


def _parts(path: Path, kind: str | None, remedy: str) -> dict[str, dict[str, Any]]:
    """The runs of a file by their place in it: objects with a ``run`` and ``rows``, of which each has a ``skip``."""
    content = read_json(path, remedy)
    if content.get('kind') != kind or not {'schema', 'run', 'rows'} <= content.keys():
        writer = 'tools/benchmark.py latency --json' if kind else 'tools/test.py'
        raise ValueError(f'this is not a file of {writer}, which holds schema, run and rows')
    if content['schema'] not in SCHEMAS:
        read = ' and '.join(map(str, SCHEMAS))
        raise ValueError(f'this has schema {printable(json.dumps(content["schema"]))[:40]}, but {read} are read')
    if not isinstance(others := content.get('other_runs', []), list):
        raise ValueError('other_runs is no list')
    parts = {'': content} | {f'other_runs[{number}].': part for number, part in enumerate(others)}
    for place, part in parts.items():
        rows = part.get('rows') if isinstance(part, dict) else None
        if not (isinstance(rows, list) and rows):
            raise ValueError(f'it has no {place}rows')
        _require(part.get('run'), {}, f'{place}run')
        for number, row in enumerate(rows):
            numbers = {key: int | None for key in POINT if isinstance(row, dict) and key in row}
            _require(row, {**numbers, 'skip': Code | None}, f'{place}rows[{number}]')
    return parts


def _results(kind: type[Run], cost: str, path: Path, place: str, part: dict[str, Any]) -> Results[Run]:
    """A run that has all that one should have, and rows of numbers with the cost that they are about."""
    said, rows = part['run'], [dict.fromkeys(POINT) | row for row in part['rows']]
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    hints = {key: hint for key, hint in get_type_hints(kind).items() if key in needed or key in said}
    _require(said, hints, f'{place}run')
    for number, row in enumerate(rows):
        kinds = {key: _kind_of(key) | None for key in row if key not in POINT}
        _require(row, {**kinds, cost: float}, f'{place}rows[{number}]')
    codes = [row['skip'] for row in rows]
    if len(set(map(point_of, rows))) < len(rows) or len({len(code or '') for code in codes}) > 1:
        text = str(codes)[:200]
        raise ValueError(
            f'{place}rows has the skip codes {text}: each should be there once at a size and number of proposals, '
            'and all of one length'
        )
    known: dict[str, Any] = {key: printable(said[key]) if isinstance(said[key], str) else said[key] for key in hints}
    return Results(path, run := kind(**known), said, rows, run.name)


def _kind_of(key: str) -> Any:
    """The type of a row's value, where it is known."""
    if key.endswith(RESAMPLED):
        return Drawn
    return Share if key in METRICS else Number


def printable(text: str) -> str:
    """A text from a file without what a terminal takes as a command, and of a bearable length."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text[:200])


def _require(part: Any, hints: Mapping[str, Any], place: str) -> None:
    """Make sure that a part of a file is an object of plain values, and has those that it should have."""
    if not isinstance(part, dict):
        raise ValueError(f'{place} is no JSON object')
    if not _is_plain(part):
        raise ValueError(f'{place} holds a number that is too large, or too many levels')
    for key, hint in hints.items():
        if key not in part:
            raise ValueError(f'{place} lacks {key}')
        if not _is_of(part[key], hint):
            raise ValueError(f'{place} has the {printable(key)} {json.dumps(part[key])[:60]}')


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a field's type; counts and costs are above 0, and no number is absurd."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_of(value, other) for other in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_of(entry, *get_args(hint)) for entry in value)
    return IS_OF[hint](value)


def _is_plain(value: Any, levels: int = 3) -> bool:
    """Whether a value can be written again: its numbers are finite, and its levels not too many for the writer."""
    if isinstance(value, (dict, list)):
        entries = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_plain(entry, levels - 1) for entry in entries)
    return not isinstance(value, float) or math.isfinite(value)
