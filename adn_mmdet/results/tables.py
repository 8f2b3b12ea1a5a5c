"""Rows of results as a table: on the terminal and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from .rows import METRICS, Results, Row, SubNetsRun, printable

COLUMNS = {
    'run': 'run',
    'point': 'point',
    'skip': 'skip',
    'size': 'size',
    'proposals': 'proposals',
    **METRICS,
    'diff': 'to FFFF (95 %)',
    'gmacs': 'GMACs',
    'ms': 'ms',
    'mj': 'mJ',
    'over_mix': 'to a mix',
    'epoch_minutes': 'min to train an epoch',
    'params_held_m': 'params held (M)',
    'params_active_m': 'params active (M)',
}
DIFFERENCES = {
    'num_images': 'images',
    'checkpoint_sha256': 'weights',
    'norms_sha256': 'norms',
    'settings_sha256': 'settings',
    'artifact_sha256': 'file',
}


def named_apart(runs: Sequence[Results[SubNetsRun]]) -> list[Results[SubNetsRun]]:
    """Runs under names of their own, which say in what they differ; where input sizes differ, all names say theirs.

    That of an exported file says its runtime.
    """
    names = [f'{run.name} ({run.run.runtime})' if run.run.runtime else run.name for run in runs]
    sizes = [f' at {size_text(results.run.input_size)}' for results in runs]
    if len(set(sizes)) > 1:
        names = [name + size for name, size in zip(names, sizes)]
    tails = [[f' ({printable(str(results.path))})' for results in runs]]
    for key, word in DIFFERENCES.items():
        tails.append([f', {word} {str(getattr(results.run, key))[:8]}' for results in runs])
    for texts in (*tails, [f', {number}' for number in range(1, len(runs) + 1)]):
        variants = {name: {text for other, text in zip(names, texts) if other == name} for name in names}
        names = [name + text if len(variants[name]) > 1 else name for name, text in zip(names, texts)]
    return [replace(results, name=name) for results, name in zip(runs, names)]


def size_text(input_size: Sequence[int]) -> str:
    """Height and width as a text."""
    return '×'.join(map(str, input_size))


def escape(text: str) -> str:
    """A text that Markdown takes for nothing else, in a table as well."""
    return re.sub(r'([\\`|<\[])', r'\\\1', text)


def table_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    """Rows of a frontier as tables show them, with the differences and the Pareto front of one metric.

    Args:
        rows: with what :func:`~adn_mmdet.results.frontier.frontier_rows` adds.
        metric: what the choice goes by.
    """
    cost = 'ms' if any(row.get('ms') is not None for row in rows) else 'gmacs'
    return [_table_row(row, metric, cost) for row in rows]


def _table_row(row: Row, metric: str, mixed: str) -> Row:
    shown = dict(row)
    for cost in ('gmacs', 'ms'):
        if row.get(cost) is not None:
            shown[cost] = f'{row[cost]:.2f}{"*" if row.get(f"front_{metric}_{cost}") else " "}'
    difference, low, high = (row.get(f'{metric}_diff{end}') for end in ('', '_low', '_high'))  # both or none
    if difference is not None and not row['is_reference']:
        shown['diff'] = f'{100 * difference:+.2f}' + (
            '' if low is None or high is None else f' ({100 * low:+.1f}, {100 * high:+.1f})'
        )
    if (over := row.get(f'{metric}_over_mix_{mixed}')) is not None:
        shown['over_mix'] = f'{100 * over:+.2f}{"×" if over < 0 else " "}'
    return shown


def legend(rows: Sequence[Row], metric: str) -> str:
    """What the marks in :func:`table_rows` mean."""
    name, text = METRICS[metric], f'* is on the Pareto front of {METRICS[metric]}'
    if differences := [row['diff'] for row in rows if row.get('diff')]:
        text += f"; to FFFF: {name} minus that of FFFF at the config's own size"
        text += ', 95 % intervals of drawn images' if any('(' in difference for difference in differences) else ''
    if any('×' in row.get('over_mix', '') for row in rows):
        text += f'; × is worth nothing: alternating FFFF and TTTT has a higher {name} for the same cost'
    return text


def _cell(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or '–'
    if name in ('size', 'proposals'):
        return str(value)
    return f'{100 * value:.2f}' if name in METRICS else f'{value:.4g}' if value < 1 else f'{value:.2f}'


def measure(names: Iterable[Iterable[str]]) -> str:
    """What rows are measured by, in a word: the AP of detectors, or accuracy."""
    return 'AP' if any(name.endswith('mAP') for row in names for name in row) else 'accuracy'


def _columns(rows: Sequence[Row]) -> list[str]:
    hidden = [name for name in ('size', 'proposals') if len({row.get(name) for row in rows} - {None}) < 2]
    hidden += ['skip', 'size', 'proposals'] if len(hidden) < 2 and all('point' in row for row in rows) else ['point']
    return [name for name in COLUMNS if name not in hidden and any(name in row for row in rows)]


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print rows on the terminal; AP and accuracy in percent."""
    names = _columns(rows)
    table = Table(title=title)
    cells = [[_cell(name, row.get(name)) for name in names] for row in rows]
    for number, name in enumerate(names):
        justify: Literal['left', 'right'] = 'left' if name in ('run', 'skip') else 'right'
        # Where the terminal is narrow, headings break: half a skip code would be another one.
        widest = None if name == 'run' else max((len(row[number]) for row in cells), default=None)
        table.add_column(COLUMNS[name], justify=justify, min_width=widest, overflow='fold')
    for row, following, texts in zip(rows, [*rows[1:], {}], cells):
        table.add_row(*texts, end_section=row.get('kind') != following.get('kind'))
    Console(markup=False, emoji=False).print(table)


def markdown_table(rows: Sequence[Row]) -> str:
    """The same table in Markdown."""
    names = _columns(rows)
    lines = [[COLUMNS[name] for name in names], ['---'] + ['---:'] * (len(names) - 1)]
    lines += [[escape(_cell(name, row.get(name))) for name in names] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
