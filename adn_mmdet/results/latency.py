"""Latency files beside test runs: each measured time goes to the row of its operating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..operating_point import OperatingPoint
from .rows import TIMES, LatencyRun, PathLike, Results, SubNetsRun, printable, read_latency
from .tables import size_text

# What all latency files must agree in.
CONDITIONS = ('device', 'threads', 'batch_size', 'amp', 'channels_last', 'compile', 'images_sha256')
RAN = ('runtime', 'artifact_sha256')  # a latency file belongs to runs of the same


def about_file(results: Results[Any]) -> dict[str, Any]:
    """What a file says of a run, without what a terminal would take as a command."""
    return {**results.said, **asdict(results.run), 'path': str(results.path), 'name': results.name}


def require_equal(keys: Sequence[str], first: Results[Any], other: Results[Any]) -> None:
    """Make sure that two files agree in what makes them comparable.

    Raises:
        UserError: they do not; names both files and the first difference.
    """
    for key in keys:
        value, another = getattr(first.run, key), getattr(other.run, key)
        if value != another:
            if isinstance(value, list):
                value, another = next(pair for pair in zip_longest(value, another) if pair[0] != pair[1])
            raise UserError(
                f'{first.path} and {other.path} cannot be compared: they differ in {key} '
                f'({printable(str(value))[:40]} and {printable(str(another))[:40]}), give files of the same {key}'
            )


def join_latency(
    runs: list[Results[SubNetsRun]], paths: Sequence[PathLike]
) -> tuple[list[Results[SubNetsRun]], list[dict[str, Any]]]:
    """The runs with what was measured in the rows that it belongs to, and what the files say of themselves."""
    measured = [read_latency(path) for path in dict.fromkeys(map(Path, paths))]
    for latency in measured:
        require_equal(CONDITIONS, measured[0], latency)
        sha256, fits = latency.run.checkpoint_sha256, []
        for run in runs:  # by name, by what ran and, where both are known, by weights
            is_of = all(getattr(run.run, key) == getattr(latency.run, key) for key in ('name', *RAN))
            fits.append(is_of and len({sha256, run.run.checkpoint_sha256} - {None}) < 2)
        if not any(fits):
            ran = f' in {latency.run.runtime}' if latency.run.runtime else ''
            weights = f' with the weights {sha256[:12]}…' if sha256 else ''
            raise UserError(
                f'{latency.path} is the latency of {latency.name}{weights}{ran}, which none of the runs is '
                f'({", ".join(run.name for run in runs)}): add its run, or leave the file out'
            )
        runs = [_add_latency(run, latency) if fit else run for run, fit in zip(runs, fits)]
    return runs, list(map(about_file, measured))


def _add_latency(run: Results[SubNetsRun], latency: Results[LatencyRun]) -> Results[SubNetsRun]:
    tested, timed = run.run.input_size, latency.run.input_size
    if tested != timed:
        raise UserError(
            f'{latency.path} was measured at {size_text(timed)}, but {run.path} was tested at {size_text(tested)}: '
            f'measure it again with --shape {tested[0]} {tested[1]}'
        )
    if any('ms' in row for row in run.rows):
        raise UserError(f'{latency.path} is a second latency file of {run.name}: give one')
    own = OperatingPoint(None, run.run.size, run.run.proposals)
    points = [OperatingPoint.from_row(row).relative_to(own) for row in run.rows]
    times = {
        OperatingPoint.from_row(row).relative_to(own): {key: row[key] for key in TIMES if key in row}
        for row in latency.rows
    }
    if times.keys().isdisjoint(points):
        what, options = 'depths', '--skip'
        if not {row['skip'] for row in run.rows}.isdisjoint(row['skip'] for row in latency.rows):
            what, options = 'points', '--sizes and --proposals'
        raise UserError(f'{latency.path} has none of the {what} in {run.path}: measure those, with {options}')
    return replace(run, rows=[{**row, **times.get(point, {})} for row, point in zip(run.rows, points)])
