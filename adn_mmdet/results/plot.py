"""AP against cost as a picture: every sub-network a labelled point, the Pareto front, other nets in their own marks."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, product

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from .frontier import COSTS, mixes
from .pareto import pareto_front, sub_net_points
from .rows import METRICS, Row

# Mark and shade of the runs of a kind. The marks alone tell them apart, in grey.
STYLES = {
    'adn': list(zip('oDv<>', ('#08306b', '#1b7837', '#762a83', '#8c510a', '#000000'))),
    'individual': [(mark, '#d94801') for mark in 's^pHd'],
    'paper': [(mark, '#666666') for mark in 'XP*'],
}
MARK_POINTS = 6  # the width of a mark
MOST_LABELS = 40  # points in a panel: of more, only those on the front are named
SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (-1, 1), (1, -1), (1, 1), (-1, -1)]  # of a point, where its label can be


def plot_accuracy_against_cost(rows: Sequence[Row], cost_labels: Mapping[str, str] = COSTS) -> bytes | None:
    """AP against cost as a PNG file, a column of panels a cost and a row a metric; None where there is no AP.

    Args:
        rows: ``skip``, metrics and costs as in ``sub_nets.json``; of several runs also ``run``, its name in the legend,
            and ``kind``: ``adn``, ``individual`` or ``paper``.
        cost_labels: of the horizontal axes.
    """
    with matplotlib.rc_context({'text.parse_math': False}):  # a $ in a name starts no formula
        figure = draw_accuracy_against_cost(rows, cost_labels)
        return None if figure is None else png(figure)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file, a pixel a pixel."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi='figure')  # labels are placed in pixels
    return buffer.getvalue()


def draw_accuracy_against_cost(rows: Sequence[Row], cost_labels: Mapping[str, str] = COSTS) -> Figure | None:
    """The figure that :func:`plot_accuracy_against_cost` writes; None where there is no AP."""
    metrics, costs = ([key for key in keys if any(_has(row, key) for row in rows)] for keys in (METRICS, COSTS))
    if not (metrics and costs):
        return None
    figure = Figure(figsize=(7 * len(costs), 5 * len(metrics) + 0.6), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)  # text has no size without it
    panels = list(zip(figure.subplots(len(metrics), len(costs), squeeze=False).flat, product(metrics, costs)))
    styles = _styles(rows)
    for axis, (metric, cost) in panels:
        axis.set(xlabel=textwrap.fill(cost_labels[cost], 75), ylabel=METRICS[metric])
        axis.margins(x=0.1, y=0.1)
        axis.grid(alpha=0.3)
        _draw_points(axis, rows, metric, cost, styles)
    legend = {label: handle for axis, _ in panels for handle, label in zip(*axis.get_legend_handles_labels())}
    if legend:
        columns = max(1, 140 * len(costs) // (8 + max(map(len, legend))))  # so many letters fit in a line
        figure.legend(legend.values(), legend.keys(), loc='outside lower center', ncols=columns, fontsize=8)
    figure.draw_without_rendering()  # settles where the panels are, so that labels can be placed
    figure.set_layout_engine('none')
    for axis, (metric, cost) in panels:
        _label_points(axis, rows, metric, cost, styles)
    return figure


def _has(row: Row, *keys: str) -> bool:
    return all(row.get(key) is not None for key in keys)


def _kind(row: Row) -> str:
    return row.get('kind') or ('adn' if row['skip'] else 'individual')


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Mark and shade of each run, the same in every panel."""
    unused = {kind: cycle(styles) for kind, styles in STYLES.items()}
    kinds = {row.get('run', ''): _kind(row) for row in rows}
    return {run: next(unused[kind]) for run, kind in kinds.items()}


def _draw_points(
    axis: Axes, rows: Sequence[Row], metric: str, cost: str, styles: Mapping[str, tuple[str, str]]
) -> None:
    """Draw the front of the sub-networks, and all marks: those on the front are filled."""
    front = pareto_front(sub_net_points(rows, cost, metric))
    if len(front) > 1:
        label = 'Pareto front of the depths (filled)'
        corners = np.array([point[:2] for point in front]) * (1, 100)
        axis.plot(*corners.T, drawstyle='steps-post', color='#999999', linewidth=1, label=label)
    for number, (ends, _) in enumerate(mixes(rows, metric, cost)):
        label = 'alternating FFFF and TTTT: below it, a depth is worth nothing' if number == 0 else '_'
        axis.plot(*(np.array(ends) * (1, 100)).T, ':', color='#999999', linewidth=1, label=label)
    for row in rows:
        if _has(row, metric, cost):
            mark, shade = styles[run := row.get('run', '')]
            face = shade if sub_net_points([row], cost, metric).keys() & set(front) else 'none'
            point = axis.plot(row[cost], 100 * row[metric], mark, color=shade, label=run or '_')
            point[0].set(markersize=MARK_POINTS, markerfacecolor=face)


def _label_points(
    axis: Axes, rows: Sequence[Row], metric: str, cost: str, styles: Mapping[str, tuple[str, str]]
) -> None:
    """Write the codes beside their points, where they cover no mark, no other label and not the front.

    A code that finds no room beside its point moves away from it, and a thin line leads back.
    """
    pixels = axis.figure.dpi / 72  # a point
    known = [row for row in rows if _has(row, metric, cost)]
    centres = [axis.transData.transform((row[cost], 100 * row[metric])) for row in known]
    taken = [Bbox([centre, centre]).padded(0.6 * MARK_POINTS * pixels) for centre in centres]
    front = [point[:2] for point in pareto_front(sub_net_points(rows, cost, metric))]
    corners = axis.transData.transform(np.reshape(front, (-1, 2)) * (1, 100))
    for (left, low), (right, high) in zip(corners, corners[1:]):
        taken += [Bbox([(left, low), (right, low)]).padded(pixels), Bbox([(right, low), (right, high)]).padded(pixels)]
    on_front = [row for point, row in sub_net_points(known, cost, metric).items() if point[:2] in front]
    named = known if len(known) <= MOST_LABELS else on_front
    for row, centre in zip(known, centres):
        if row['skip'] and row in named:
            shade, name = styles[row.get('run', '')][1], row.get('point') or row['skip']
            label = axis.text(0, 0, name, color=shade, fontsize=8, family='monospace', ha='center', va='center')
            size = np.array(label.get_window_extent().size)
            for distance, side in product(range(5, 120, 5), SIDES):
                place = centre + np.array(side) * (size / 2 + distance * pixels)
                box = Bbox([place - size / 2, place + size / 2])
                if not box.count_overlaps(taken) and axis.bbox.contains(*box.min) and axis.bbox.contains(*box.max):
                    break
            label.set(position=place, transform=None)
            taken.append(box)
            if distance > 5:
                ends = zip(centre, place - np.array(side) * size / 2)
                axis.add_artist(Line2D(*ends, transform=None, color=shade, linewidth=0.5, zorder=1))
