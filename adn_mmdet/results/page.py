"""compare.html: the frontier as one file to look at, with a budget to move, a table to sort, and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from ..errors import UserError
from .choice import choose, describe_choice
from .frontier import COSTS, UNITS, mixes
from .intervals import without_draws
from .pareto import pareto_front, sub_net_points
from .pictures import data_uri, painted, pictures_in
from .rows import METRICS, Row

TEMPLATE = Path(__file__).with_name('page.html')
NUM_PICTURES = 3  # of a point


def page(
    rows: Sequence[Row],
    metric: str,
    budget: tuple[str, float] | None,
    about: str,
    cost_labels: Mapping[str, str],
    pictures: Path | None = None,
) -> bytes:
    """The page, which needs no network.

    Args:
        rows: with all that :mod:`~adn_mmdet.results.frontier` adds, and what they were resampled to.
        metric: which is shown first.
        budget: cost and limit that are shown first; None takes what is halfway from the cheapest
            point to the reference.
        about: what the numbers are, in a sentence.
        cost_labels: of the axis, by cost.
        pictures: the folder that ``tools/test.py --show-dir`` painted, with a folder a point in it.

    Raises:
        UserError: a picture cannot be read.
    """
    pairs = list(product(METRICS, COSTS))
    content = {
        'rows': list(map(without_draws, rows)),
        'metrics': {key: METRICS[key] for key in METRICS if any(row.get(key) is not None for row in rows)},
        'costs': {key: cost_labels[key] for key in ('ms', 'gmacs') if any(row.get(key) is not None for row in rows)},
        'units': UNITS,
        'metric': metric,
        'budget': budget,
        'about': about,
        'choices': {f'{name} {cost}': list(_choices(rows, name, cost)) for name, cost in pairs},
        'mixes': {f'{name} {cost}': [ends for ends, _ in mixes(rows, name, cost)] for name, cost in pairs},
        'pictures': _pictures(rows, pictures) if pictures else {},
    }
    data = json.dumps(content).replace('<', '\\u003c')  # no text can end the script
    text = TEMPLATE.read_text(encoding='utf-8')
    for name, part in (('DATA', data), ('PLOTLY', get_plotlyjs())):
        text = text.replace(f'/* {name} */', part)
    return text.encode()


def _choices(rows: Sequence[Row], metric: str, cost: str) -> Iterator[dict[str, Any]]:
    """From which budget on which row is chosen, and the sentence that says so, with ``{budget}`` in it."""
    points = sub_net_points(rows, cost, metric)
    for limit in [point.cost for point in pareto_front(points)]:
        choice = choose(rows, metric, cost, limit)
        is_chosen = [all(row.get(key) == choice['sub_net'][key] for key in ('run', 'point')) for row in rows]
        said = describe_choice(choice).replace(f'a budget of {limit:g} {UNITS[cost]}', 'a budget of {budget}')
        yield {'from': limit, 'row': is_chosen.index(True), 'said': said}


def _pictures(rows: Sequence[Row], folder: Path) -> dict[int, list[str]]:
    """Pictures of rows, by their index, as data URIs; all rows show the same images, as far as they were painted."""
    folders = {index: painted(rows, row, folder) for index, row in enumerate(rows) if row['skip'] and 'point' in row}
    found = {index: pictures_in(path) for index, path in folders.items() if path}
    names = [{path.name for path in paths} for paths in found.values() if paths]
    if not names:
        raise UserError(f'{folder} has no pictures of these points: paint them with tools/test.py --show-dir')
    shown = sorted(set.intersection(*names))[:NUM_PICTURES]
    chosen = {index: [path for path in paths if path.name in shown] for index, paths in found.items()}
    return {index: list(map(data_uri, paths)) for index, paths in chosen.items() if paths}
