"""Rows of results as a table: on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table

from .plot import METRICS
from .rows import Row

COLUMNS = {
    'run': 'run',
    'skip': 'skip',
    **METRICS,
    'gmacs': 'GMACs',
    'ms': 'ms',
    'params_held_m': 'params held (M)',
    'params_active_m': 'params active (M)',
}


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
