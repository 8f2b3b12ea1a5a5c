"""Operating points on one frontier: what each is worth beside FFFF, beside alternating two depths, beside all others.

A row of a run gets

- ``point``: its spelling, such as ``TTFF@640/300``; size and proposals are left out where all rows share them;
- ``size`` and ``proposals`` of the config, where it has none of its own;
- ``is_reference``: whether it is FFFF at the config's own size and proposals, which the others are compared with;
- ``<metric>_diff``, ``<metric>_diff_low``, ``<metric>_diff_high``: its AP minus the reference's, and the 95 % interval,
  None where they were not resampled;
- ``<metric>_over_mix_<cost>``: its AP minus that of the best mix of FFFF and TTTT, at the same size and proposals, that
  costs no more. Alternating the two from frame to frame has any mean cost in between, and the AP on the straight line
  between them: a depth below 0 is worth nothing. None for these two, and for what is cheaper than both;
- ``front_<metric>_<cost>``: whether it is on that Pareto front of all points of all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, product
from typing import Any

from ..operating_point import OperatingPoint
from .intervals import interval_of_difference
from .pareto import pareto_front, sub_net_points
from .rows import METRICS, Results, Row, SubNetsRun

COSTS = {'gmacs': 'GMACs an image', 'ms': 'ms a batch'}
UNITS = {'gmacs': 'GMACs', 'ms': 'ms'}
NUMBERS = ('size', 'proposals')


def frontier_rows(run: Results[SubNetsRun]) -> list[Row]:
    """The rows of a run with all that they are worth within it; its latency should have been added before."""
    rows = [row | {key: row.get(key) or getattr(run.run, key) for key in NUMBERS} for row in run.rows]
    shared = {key: None for key in NUMBERS if len({row[key] for row in rows}) == 1}
    for row in rows:
        row['point'] = str(OperatingPoint.from_row(row | shared)) or None
        is_own = all(row[key] == getattr(run.run, key) for key in NUMBERS)
        row['is_reference'] = is_own and 'F' in (row['skip'] or '') and 'T' not in row['skip']
    for reference, row, metric in product([row for row in rows if row['is_reference']], rows, METRICS):
        if row.get(metric) is not None and reference.get(metric) is not None:
            low, high = interval_of_difference(row, reference, metric) or (None, None)
            row[f'{metric}_diff'] = row[metric] - reference[metric]
            row |= {f'{metric}_diff_low': low, f'{metric}_diff_high': high}
    for metric, cost in product(METRICS, COSTS):
        for ends, between in mixes(rows, metric, cost):
            for row in between:
                line = mixed(ends, row[cost])
                row[f'{metric}_over_mix_{cost}'] = None if line is None else row[metric] - line
    return rows


def add_fronts(rows: Sequence[Row]) -> None:
    """Say of the sub-networks of all runs which are on the Pareto front, for each metric and cost."""
    for metric, cost in product(METRICS, COSTS):
        points = sub_net_points(rows, cost, metric)
        front = set(pareto_front(points))
        for point, row in points.items():
            row[f'front_{metric}_{cost}'] = point in front


def mixes(rows: Sequence[Row], metric: str, cost: str) -> list[tuple[list[tuple[float, float]], list[Row]]]:
    """For each run, size and number of proposals with FFFF and TTTT: (cost, AP) of these two, and the other depths."""

    def place(row: Row) -> tuple[Any, ...]:
        return row.get('run', ''), *(row.get(key) or 0 for key in NUMBERS)

    found = []
    known = sub_net_points(rows, cost, metric).values()
    for _, group in groupby(sorted(known, key=place), key=place):
        depths = list(group)
        ends = [row for row in depths if len({*row['skip']} - {'-'}) == 1]
        if len(ends) == 2:
            pairs = sorted((row[cost], row[metric]) for row in ends)
            found.append((pairs, [row for row in depths if row not in ends]))
    return found


def mixed(ends: Sequence[tuple[float, float]], cost: float) -> float | None:
    """AP of the best mix of two nets that costs no more than so much on average; None where both cost more.

    Args:
        ends: (cost, AP) of each, the cheaper one first.
        cost: the most.
    """
    (low, cheap), (high, dear) = ends
    if cost < low:
        return None
    share = min(1.0, (cost - low) / (high - low)) if high > low else 1.0
    return max(cheap, cheap + share * (dear - cheap))
