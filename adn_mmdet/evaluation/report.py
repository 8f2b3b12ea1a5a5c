"""Results of sub-networks as a JSON file, a table, a plot and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..files import write_atomically
from .plot import METRICS, plot_accuracy_against_cost
from .results import FILE_NAME, SCHEMA, read_json, read_sub_nets
from .sub_nets import Row

COLUMNS = {
    'run': 'run',
    'skip': 'skip',
    **METRICS,
    'gmacs': 'GMACs',
    'ms': 'ms',
    'params_held_m': 'params held (M)',
    'params_active_m': 'params active (M)',
}


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


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    def cell(name: str) -> str:
        value = row.get(name)
        if value is None:
            return '–'
        if isinstance(value, str):
            return value
        return f'{100 * value:.2f}' if name.endswith('mAP') else f'{value:.4g}' if value < 1 else f'{value:.2f}'

    return [cell(name) for name in names]


def _columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in COLUMNS if any(name in row for row in rows)]


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print rows on the terminal; AP in percent."""
    names = _columns(rows)
    table = Table(title=title)
    for name in names:
        justify: Literal['left', 'right'] = 'left' if name in ('run', 'skip') else 'right'
        table.add_column(COLUMNS[name], justify=justify, no_wrap=name != 'run', overflow='fold')
    for row, following in zip(rows, [*rows[1:], {}]):
        table.add_row(*_cells(row, names), end_section=row.get('kind') != following.get('kind'))
    Console().print(table)


def markdown_table(rows: Sequence[Row]) -> str:
    """The same table in Markdown."""
    names = _columns(rows)
    lines = [[COLUMNS[name] for name in names], ['---'] + ['---:'] * (len(names) - 1)]
    lines += [_cells(row, names) for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def side_by_side(folders: Sequence[Path], names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Put pictures of the same names from several folders side by side, a row a name and a column a folder."""
    figure = Figure(figsize=(4 * len(folders), 2 * len(names)), layout='compressed')
    axes = figure.subplots(len(names), len(folders), squeeze=False)
    for row, name in zip(axes, names):
        for axis, folder in zip(row, folders):
            axis.imshow(imread(folder / name))
            axis.set_axis_off()
            axis.set_title(folder.name if name == names[0] else '', fontsize=10)
    figure.savefig(path, dpi=120)


def write_report(
    work_dir: str | os.PathLike[str], pictures: str | os.PathLike[str] | None = None, num_pictures: int = 4
) -> Path:
    """Write ``report.md`` with the table, a plot, and predictions of super-net and base-net side by side.

    Args:
        work_dir: where ``sub_nets.json`` is, and where the report goes.
        pictures: the folder that ``tools/test.py --show-dir`` painted, with a folder a code in it.
        num_pictures: how many images to show.

    Returns:
        The path of the report.

    Raises:
        UserError: there are no results.
    """
    folder = Path(work_dir)
    if not (folder / FILE_NAME).is_file():
        raise UserError(f'there is no {folder / FILE_NAME}: run tools/test.py with --work-dir {folder} first')
    content = read_sub_nets(folder)
    run, rows = content['run'], content['rows']
    height, width = run['input_size']
    plot_accuracy_against_cost(rows, folder / 'accuracy_cost.png')
    lines = [
        f'# {run["name"]}',
        f'{run["num_images"]} images; AP in percent; costs for one image of {height}×{width} pixels.',
        markdown_table(rows),
        '![AP against cost](accuracy_cost.png)',
    ]
    codes = [row['skip'] for row in rows if row['skip']]
    columns = [Path(pictures) / code for code in dict.fromkeys((codes[0], codes[-1]))] if pictures and codes else []
    if columns and all(column.is_dir() for column in columns):
        names = sorted(path.name for path in columns[0].iterdir())[:num_pictures]
        side_by_side(columns, names, folder / 'predictions.png')
        lines += [
            f'Truth and predictions of {" and ".join(column.name for column in columns)}, each beside the other:',
            '![predictions](predictions.png)',
        ]
    report = folder / 'report.md'
    report.write_text('\n\n'.join(lines) + '\n', encoding='utf-8')
    return report
