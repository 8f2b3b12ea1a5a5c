"""The report of a test run: what to ship, its table, AP against cost, and predictions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import write_together
from .choice import choose, describe_choice, require_budget
from .frontier import add_fronts, frontier_rows
from .latency import join_latency
from .pareto import pareto_front, sub_net_points
from .pictures import painted, side_by_side
from .plot import plot_accuracy_against_cost
from .rows import FILE_NAME, PathLike, Row, main_metric, read_sub_nets
from .tables import escape, legend, markdown_table, measure, named_apart, size_text, table_rows

FILES = ('report.md', 'accuracy_cost.png', 'predictions.png')  # what is written


def write_report(
    work_dir: PathLike,
    pictures: PathLike | None = None,
    num_pictures: int = 4,
    latency: Sequence[PathLike] = (),
    metric: str | None = None,
    budget: tuple[str, float] | None = None,
) -> Path:
    """Write ``report.md`` with what to ship, the table, a plot, and predictions of two points side by side.

    They are of the run that was tested last; other runs in the file follow with a table each.

    Args:
        work_dir: where ``sub_nets.json`` is, and where the report goes.
        pictures: the folder that ``tools/test.py --show-dir`` painted, with a folder a point in it.
        num_pictures: how many images to show.
        latency: files of ``tools/benchmark.py latency --json``.
        metric: the accuracy that the choice goes by; None takes the first of ``METRICS`` that the run has.
        budget: as that of :func:`~adn_mmdet.results.compare.compare`; None takes what is halfway from the
            cheapest point to FFFF at the config's own size.

    Returns:
        The path of the report.

    Raises:
        UserError: there are no results, no pictures where some should be, or nothing keeps the budget.
        OSError: the files cannot be written; then none of them is.
    """
    folder = Path(work_dir)
    if budget:
        require_budget(*budget)
    if not (folder / FILE_NAME).is_file():
        raise UserError(f'there is no {folder / FILE_NAME}: run tools/test.py with --work-dir {folder} first')
    runs, _ = join_latency(named_apart(read_sub_nets(folder / FILE_NAME)), latency)
    tables = [[{'run': run.name, **row} for row in frontier_rows(run)] for run in runs]
    rows = tables[0]
    metric = metric or main_metric(rows)
    sections = []
    for run, table in zip(runs, tables):
        add_fronts(table)
        shown = [{key: value for key, value in row.items() if key != 'run'} for row in table_rows(table, metric)]
        is_one = len({row['size'] for row in table}) == 1
        costs = f'costs for one image{f" of {size_text(run.run.input_size)} px" * is_one}'
        about = f'{run.run.num_images} images; {measure(table)} in percent; {costs}. {legend(shown, metric)}.'
        sections.append([f'# {escape(run.name)}', escape(about), markdown_table(shown)])
    if said := _what_to_ship(rows, metric, budget):
        sections[0].insert(1, escape(said))
    contents = dict.fromkeys(FILES[1:]) | {'accuracy_cost.png': plot_accuracy_against_cost(rows)}
    if contents['accuracy_cost.png']:
        sections[0].append(f'![{measure(rows)} against cost](accuracy_cost.png)')
    if pictures is not None:
        folders = _two_folders(rows, Path(pictures))
        contents['predictions.png'] = side_by_side(folders or [Path(pictures)], num_pictures)
        what = f'Truth and predictions of {" and ".join(path.name for path in folders)}, each beside the other:'
        sections[0] += [what, '![predictions](predictions.png)']
    text = '\n\n'.join(line for section in sections for line in section) + '\n'
    write_together({folder / name: content for name, content in {**contents, 'report.md': text.encode()}.items()})
    return folder / 'report.md'


def _what_to_ship(rows: Sequence[Row], metric: str, budget: tuple[str, float] | None) -> str | None:
    """The choice as a sentence; None where nobody named a budget and nothing is cheaper than FFFF."""
    if budget:
        return describe_choice(choose(rows, metric, *budget))
    for reference in [row for row in rows if row['is_reference']]:
        cost = 'ms' if reference.get('ms') else 'gmacs'
        if front := pareto_front(sub_net_points(rows, cost, metric)):
            limit = float(f'{(reference[cost] + front[0].cost) / 2:.3g}')
            if front[0].cost <= limit < reference[cost]:
                between = f' (halfway from the cheapest to {reference["point"]})'
                return describe_choice(choose(rows, metric, cost, limit), between)
    return None


def _two_folders(rows: Sequence[Row], pictures: Path) -> list[Path]:
    """The folders of the first and the last point that was painted; none where there is no folder a point."""
    found = [path for row in rows if row['skip'] and (path := painted(rows, row, pictures))]
    return list(dict.fromkeys((found[0], found[-1]))) if found else []
