"""The operating point to ship for a budget, and what it gives up, as a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from .frontier import UNITS
from .intervals import Interval, can_be_told_apart, interval_of_difference
from .pareto import best_under_budget, cheapest_alike, sub_net_points
from .rows import METRICS, Row
from .tables import measure

KEYS = ('run', 'point', 'skip', 'size', 'proposals')


def require_budget(cost: str, limit: float) -> None:
    """Make sure that a budget is one.

    Raises:
        UserError: it is not a positive number.
    """
    if not (math.isfinite(limit) and limit > 0):
        raise UserError(f'a budget should be a positive number of {UNITS[cost]}, but got {limit}')


def choose(rows: Sequence[Row], metric: str, cost: str, limit: float) -> dict[str, Any]:
    """The most accurate point within a budget, or a cheaper one that cannot be told apart from it.

    Args:
        rows: of all runs, with what :func:`~adn_mmdet.results.frontier.frontier_rows` adds.
        metric: what the choice goes by.
        cost: of which the budget is.
        limit: the most that a point may cost.

    Returns:
        ``budget``, ``cost``, ``metric``; ``sub_net``, the row chosen; ``super_net``, that of FFFF of the same run, at
        the config's own size and proposals where it is there (else None); ``best``, the row of the most accurate point
        where a cheaper one was chosen (else None). Of each row the keys of ``KEYS``, metric and cost; the latter two
        rows have ``low`` and ``high`` as well, the interval of the chosen one's AP minus theirs, or None.

    Raises:
        UserError: no point fits, or none has that metric or cost.
    """
    points = sub_net_points(rows, cost, metric)
    if not any(row.get(metric) is not None for row in rows):
        raise UserError(f'no run has a {METRICS[metric]}: choose by another one, --metric')
    if not points and cost == 'ms':
        raise UserError(
            'a budget in ms needs the latency of a run that has depths: '
            'python tools/benchmark.py latency CONFIG CHECKPOINT --skip all --json FILE, then --latency FILE'
        )
    best = best_under_budget(points, limit, UNITS[cost])
    row = points[cheapest_alike(points, best, lambda point: not can_be_told_apart(points[point], points[best], metric))]
    super_nets = [other for other in points.values() if other['run'] == row['run'] and 'T' not in other['skip']]
    super_nets.sort(key=lambda other: not other['is_reference'])
    found = {'super_net': super_nets[0] if super_nets else None, 'best': None if row is points[best] else points[best]}

    def about(other: Row) -> dict[str, Any]:
        return {key: other[key] for key in (*KEYS, metric, cost)}

    def beside(other: Row) -> dict[str, Any]:
        low, high = interval_of_difference(row, other, metric) or (None, None)
        return about(other) | {'low': low, 'high': high}

    others = {name: None if other is None else beside(other) for name, other in found.items()}
    return {'budget': limit, 'cost': cost, 'metric': metric, 'sub_net': about(row), **others}


def describe_choice(choice: dict[str, Any], budget_is: str = '') -> str:
    """The choice in one or two sentences.

    Args:
        choice: what :func:`choose` returns.
        budget_is: what the budget is, where nobody named it.
    """
    cost, metric, chosen, super_net = (choice[key] for key in ('cost', 'metric', 'sub_net', 'super_net'))
    unit, name = UNITS[cost], measure([[metric]])
    text = (
        f'Ship {chosen["point"]} of {chosen["run"]} for a budget of {choice["budget"]:g} {unit}{budget_is}: '
        f'{METRICS[metric]} {100 * chosen[metric]:.2f} at {chosen[cost]:.2f} {unit}'
    )
    if super_net is None:
        text += '. What it gives up against the super-net is not known: its row is missing.'
    else:
        loss, saving = 100 * (chosen[metric] - super_net[metric]), chosen[cost] - super_net[cost]
        text += f'; {loss:+.2f} {name}{_interval(super_net)} and {saving:+.2f} {unit} against {super_net["point"]}.'
    if best := choice['best']:
        text += (
            f' {best["point"]}{"" if best["run"] == chosen["run"] else " of " + best["run"]} '
            f'({100 * best[metric]:.2f} at {best[cost]:.2f} {unit}) fits as well, but cannot be told apart from it on '
            f'these images{_interval(best)}, so that the cheaper one was chosen.'
        )
    return text


def _interval(row: dict[str, Any]) -> str:
    return '' if row['low'] is None else f' ({Interval(row["low"], row["high"])})'
