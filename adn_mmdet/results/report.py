"""The report of a test run: its table, AP against cost, and predictions side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from ..errors import UserError
from .plot import plot_accuracy_against_cost
from .rows import FILE_NAME, read_sub_nets
from .tables import markdown_table


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
