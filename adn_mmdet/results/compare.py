"""Several test runs, latency files and the paper's numbers side by side, and the depth to ship for a budget."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame

from ..errors import UserError
from ..files import json_bytes, write_together
from .choice import choose, describe_choice, require_budget
from .frontier import add_fronts, frontier_rows
from .intervals import without_draws
from .latency import about_file, join_latency, require_equal
from .page import page
from .plot import plot_accuracy_against_cost
from .rows import METRICS, TIMES, PathLike, Results, Row, SubNetsRun, main_metric, read_sub_nets
from .tables import escape, legend, markdown_table, measure, named_apart, print_table, size_text, table_rows

SCHEMA = 1
# The paper's numbers: of detectors on COCO, of classifiers on ImageNet.
PAPER_FILES = tuple(Path(__file__).with_name(name) for name in ('paper_table5.json', 'paper_imagenet.json'))
PAPER_MODELS = ('faster_rcnn', 'mask_rcnn', 'retinanet', 'resnet50', 'mobilenetv2', 'vit-b16', 'vit-b32', 'swin-t')
DATA = ('classes', 'num_images', 'annotations_sha256')  # what all runs must agree in
FILES = ('compare.json', 'compare.csv', 'compare.md', 'compare.png', 'compare.html')  # what is written


def compare(
    runs: Sequence[PathLike],
    latency: Sequence[PathLike] = (),
    paper: Sequence[str] | None = None,
    metric: str | None = None,
    budget: tuple[str, float] | None = None,
) -> dict[str, Any]:
    """Join runs on the same data with their measured latency and with what the paper has.

    Runs may differ in input size, since AP and costs of a run are those of its own size; their names then say it.
    All runs of a file are shown, but for those on other data than all the files have.

    Args:
        runs: work folders with a ``sub_nets.json``, or such files.
        latency: files of ``tools/benchmark.py latency --json``; each belongs to the runs of its config's name and,
            where it was measured with weights, of these weights.
        paper: which of ``PAPER_MODELS`` to show the paper's numbers of; None takes those of which a config of the paper
            (``<detector>_r50_…_coco``, ``<network>_…in1k``) was tested on all of COCO val2017 or of ImageNet's
            validation set.
        metric: the accuracy that the choice goes by; None takes the first of ``METRICS`` that a run has.
        budget: the most that a sub-network may cost, as ``('ms', 40)`` or ``('gmacs', 200)``.

    Returns:
        What ``compare.json`` holds: ``schema``, ``kind``, ``runs``, ``left_out`` (runs on other data), ``latency``,
        ``paper`` (its source, or None), ``metric``, ``rows``, and ``choice`` (None without a budget). A row has
        ``run``, ``kind`` (``adn``, ``individual`` or ``paper``), ``input_size``, what its files have, and for
        sub-networks ``front_<metric>_<cost>``, whether it is on that Pareto front of all sub-networks of the runs.

    Raises:
        UserError: a file cannot be read, the files cannot be compared, or no sub-network fits the budget.
    """
    if budget:
        require_budget(*budget)
    tested, left_out = _read_runs(runs)
    tested, measured = join_latency(tested, latency)
    published, source = _paper_rows(tested, paper)
    rows = [
        {'run': run.name, 'kind': 'adn' if row['skip'] else 'individual', 'input_size': run.run.input_size, **row}
        for run in tested
        for row in frontier_rows(run)
    ] + published
    metric = metric or main_metric(row for run in tested for row in run.rows)
    add_fronts(rows)
    return {
        'schema': SCHEMA,
        'kind': 'comparison',
        'runs': list(map(about_file, tested)),
        'left_out': list(map(about_file, left_out)),
        'latency': measured,
        'paper': source if published else None,
        'metric': metric,
        'rows': rows,
        'choice': choose(rows, metric, *budget) if budget else None,
    }


def _read_runs(paths: Sequence[PathLike]) -> tuple[list[Results[SubNetsRun]], list[Results[SubNetsRun]]]:
    """The runs of all files that are on the data that all files have, of several the most images; and the others."""
    files = [read_sub_nets(path) for path in dict.fromkeys(map(Path, paths))]
    shared = [data for data in map(_data, files[0]) if all(data in map(_data, runs) for runs in files)]
    for runs in [] if shared else files:
        require_equal(DATA, files[0][0], runs[0])
    data = max(shared, key=lambda data: data['num_images'])
    tested = [run for runs in files for run in runs if _data(run) == data]
    for row in (row for run in tested for row in run.rows):
        for key in ('run', 'kind', 'input_size', *TIMES):  # which its file cannot say
            row.pop(key, None)
    return named_apart(tested), [run for runs in files for run in runs if _data(run) != data]


def _data(results: Results[SubNetsRun]) -> dict[str, Any]:
    return {key: getattr(results.run, key) for key in DATA}


def _paper_rows(runs: Sequence[Results[SubNetsRun]], models: Sequence[str] | None) -> tuple[list[Row], str]:
    """The paper's rows of some models, and their sources."""
    about, names = runs[0].run, [run.run.name for run in runs]
    rows: list[Row] = []
    sources: list[str] = []
    for table in [json.loads(path.read_text(encoding='utf-8')) for path in PAPER_FILES]:
        size = (about.num_images, len(about.classes))
        is_same = size == (table['num_images'], table['num_classes'])
        is_same = is_same and about.classes == table.get('classes', about.classes)
        found = [model for model, pattern in table['configs'].items() if is_same and fnmatch.filter(names, pattern)]
        asked = found if models is None else [model for model in table['configs'] if model in models]
        if asked and not is_same:
            raise UserError(
                f'--paper {" ".join(asked)}: the paper tested on {table["task"]}, '
                f'but these runs on {size[0]} images and {size[1]} classes: use --paper none'
            )
        chosen = [{**row, 'kind': 'paper'} for row in table['rows'] if row.pop('model') in asked]
        rows, sources = rows + chosen, sources + [table['source']] * bool(chosen)
    for row in rows:
        row['point'] = row['skip']
        if row['gmacs'] and row['input_size'] not in [run.run.input_size for run in runs]:
            row['run'] += f' (GMACs at {size_text(row["input_size"])})'
    return rows, '; '.join(sources)


def describe(content: dict[str, Any]) -> str:
    """What a table's numbers are."""
    costs = '; '.join(describe_costs(content).values())
    images = content['runs'][0]['num_images']
    marks = legend(table_rows(content['rows'], content['metric']), content['metric'])
    text = f'{images} images; {measure(content["rows"])} in percent; {costs}; {marks}'
    others = ', '.join(f'{run["name"]} ({run["num_images"]} images)' for run in content['left_out'])
    return f'{text}; not shown, since on other data: {others}' if others else text


def print_comparison(content: dict[str, Any]) -> None:
    """Print the table and the choice, without what would not fit on a terminal."""
    shown, left_out = table_rows(content['rows'], content['metric']), {'params_held_m', 'params_active_m', 'mj'}
    if len({(row['size'], row['proposals']) for row in shown if 'size' in row}) > 1:  # points are longer than codes
        left_out |= METRICS.keys() - {content['metric']}
        left_out |= {'run'} if len({row['run'] for row in shown}) == 1 else set()
    rows = [{key: row[key] for key in row if key not in left_out} for row in shown]
    print_table(rows, describe(content))
    if content['choice']:
        print(describe_choice(content['choice']))


def describe_costs(content: dict[str, Any]) -> dict[str, str]:
    """What the costs are of: input size, and the conditions of the latency."""
    sizes = {size_text(run['input_size']) for run in content['runs']}
    is_one = len(sizes) == 1 and len({row.get('size') for row in content['rows'] if row['kind'] != 'paper'}) == 1
    size = f' of {sizes.pop()}' if is_one else ''
    labels = {'gmacs': f'GMACs an image{size}'}
    if content['latency']:
        about = content['latency'][0]
        flags = [key.replace('_', ' ') for key in ('amp', 'channels_last', 'compile') if about[key]]
        if any(file['checkpoint_sha256'] is None for file in content['latency']):
            flags.append('measured with untrained weights')  # which detect another number of objects
        images = f'{about["batch_size"]} images' if about['batch_size'] > 1 else 'an image'
        conditions = [about['device'], f'{about["threads"]} thread{"s" * (about["threads"] > 1)}', *flags]
        labels['ms'] = f'ms for {images}{size} ({", ".join(conditions)})'
    return labels


def write_comparison(content: dict[str, Any], folder: PathLike, pictures: PathLike | None = None) -> None:
    """Write ``compare.json``, ``.csv`` (the same rows), ``.md``, ``.png`` and ``.html``, or none of them.

    Args:
        content: what :func:`compare` returns.
        folder: where to.
        pictures: the ``--show-dir`` of tools/test.py, for the page.

    Raises:
        UserError: there are no pictures where some should be.
        OSError: they cannot be written.
    """
    rows, sizes = list(map(without_draws, content['rows'])), [run['input_size'] for run in content['runs']]
    known = [row if row['input_size'] in sizes else {**row, 'gmacs': None} for row in rows]  # costs of one size
    about, costs = f'{describe(content)}.', describe_costs(content)
    picture = plot_accuracy_against_cost(known, costs)
    parts = [
        '# Comparison',
        escape(about),
        markdown_table(table_rows(content['rows'], content['metric'])),
        escape(describe_choice(content['choice'])) if content['choice'] else '',
        f'![{measure(rows)} against cost](compare.png)' if picture else '',
        f'The paper: {content["paper"]}.' if content['paper'] else '',
    ]
    table = DataFrame(rows, dtype=object).to_csv(index=False)  # as objects, whole numbers stay whole beside empty cells
    text = '\n\n'.join(filter(None, parts)) + '\n'
    budget = (content['choice']['cost'], content['choice']['budget']) if content['choice'] else None
    where = None if pictures is None else Path(pictures)
    html = page(content['rows'], content['metric'], budget, about, costs, where) if picture else None
    data = json_bytes({**content, 'rows': rows})
    contents = zip(FILES, (data, table.encode(), text.encode(), picture, html))
    write_together({Path(folder) / name: content for name, content in contents})
