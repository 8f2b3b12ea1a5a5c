"""Which sub-networks are worth running: the Pareto front of accuracy against cost, and the best under a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..errors import UserError


class Point(NamedTuple):
    """One sub-network: its cost (ms or GMACs), accuracy (AP; where unknown, any measure of depth) and code."""

    cost: float
    accuracy: float
    skip: str


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The sub-networks that no other one beats, from the cheapest to the most accurate.

    Each is more accurate than every one that costs as much or less; of equals in both, the first by code stays.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy, point.skip)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def best_under_budget(points: Iterable[Point], budget: float, unit: str = 'ms') -> Point:
    """The most accurate sub-network that costs no more than the budget; of equally accurate ones the cheapest.

    Args:
        points: all sub-networks.
        budget: the most that one may cost.
        unit: of the costs and the budget, for the message.

    Raises:
        UserError: none fits; names the cheapest one.
    """
    front = pareto_front(points)
    if not front:
        raise UserError(f'there is no sub-network to choose from for a budget of {budget:g} {unit}')
    within = [point for point in front if point.cost <= budget]
    if not within:
        cost, _, skip = front[0]
        raise UserError(
            f'no sub-network fits a budget of {budget:g} {unit}: the cheapest, {skip}, takes {cost:.4g} {unit}'
        )
    return within[-1]


def cheapest_alike(points: Iterable[Point], best: Point, is_alike: Callable[[Point], bool]) -> Point:
    """The cheapest sub-network of the front that is as good as one that was chosen.

    Args:
        points: all sub-networks.
        best: the one that was chosen.
        is_alike: whether a cheaper one cannot be told apart from it in accuracy.
    """
    return next(point for point in pareto_front(points) if point == best or is_alike(point))


def sub_net_points(rows: Iterable[dict[str, Any]], cost: str, accuracy: str) -> dict[Point, dict[str, Any]]:
    """The points of rows of ``sub_nets.json`` (with ``run``, where there are several runs) that are sub-networks.

    Args:
        rows: those without a code, of published numbers (``kind`` ``'paper'``) or with an unknown value are left out.
        cost: the key of the cost, such as ``'gmacs'``.
        accuracy: the key of the accuracy, such as ``'bbox_mAP'``.
    """
    return {
        Point(row[cost], row[accuracy], f'{_name(row)} of {row["run"]}' if 'run' in row else _name(row)): row
        for row in rows
        if row['skip'] and row.get('kind') != 'paper' and row.get(cost) is not None and row.get(accuracy) is not None
    }


def _name(row: dict[str, Any]) -> str:
    """The spelling of a row's operating point."""
    return str(row.get('point') or row['skip'])
