"""The report of a test run: its table, AP against cost, and predictions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from ..errors import UserError
from ..files import write_together
from .plot import plot_accuracy_against_cost, png
from .rows import FILE_NAME, PathLike, read_sub_nets
from .tables import escape, markdown_table, measure, named_apart, size_text

FILES = ('report.md', 'accuracy_cost.png', 'predictions.png')  # what is written


def side_by_side(folders: Sequence[Path], num_pictures: int) -> bytes:
    """A PNG file of the pictures that all folders have, a row a name and a column a folder.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    shared = set.intersection(*({path.name for path in folder.glob('[!.]*') if path.is_file()} for folder in folders))
    if not shared:
        raise UserError(f'{" and ".join(map(str, folders))}: no pictures, paint them with tools/test.py --show-dir')
    paths = [[folder / name for folder in folders] for name in sorted(shared)[:num_pictures]]
    figure = Figure(figsize=(4 * len(folders), 2 * len(paths)), dpi=120, layout='compressed')
    for path, axis in zip(sum(paths, []), figure.subplots(len(paths), len(folders), squeeze=False).flat):
        try:
            axis.imshow(imread(path))
        except Exception as error:  # every decoder has its own
            reason = str(error).partition('\n')[0][:60]
            raise UserError(f'cannot read the picture {path} ({reason}): paint it again') from error
        axis.set_axis_off()
        axis.set_title(path.parent.name if path in paths[0] else '', fontsize=10, parse_math=False)
    return png(figure)


def write_report(work_dir: PathLike, pictures: PathLike | None = None, num_pictures: int = 4) -> Path:
    """Write ``report.md`` with the table, a plot, and predictions of super-net and base-net side by side.

    They are of the run that was tested last; other runs in the file follow with a table each.

    Args:
        work_dir: where ``sub_nets.json`` is, and where the report goes.
        pictures: the folder that ``tools/test.py --show-dir`` painted, with a folder a code in it.
        num_pictures: how many images to show.

    Returns:
        The path of the report.

    Raises:
        UserError: there are no results, or no pictures where some should be.
        OSError: the files cannot be written; then none of them is.
    """
    folder = Path(work_dir)
    if not (folder / FILE_NAME).is_file():
        raise UserError(f'there is no {folder / FILE_NAME}: run tools/test.py with --work-dir {folder} first')
    runs = named_apart(read_sub_nets(folder / FILE_NAME))
    sections = [
        [
            f'# {escape(run.name)}',
            f'{run.run.num_images} images; {measure(run.rows)} in percent; '
            f'costs for one image of {size_text(run.run.input_size)} px.',
            markdown_table(run.rows),
        ]
        for run in runs
    ]
    contents = dict.fromkeys(FILES[1:]) | {'accuracy_cost.png': plot_accuracy_against_cost(runs[0].rows)}
    if contents['accuracy_cost.png']:
        sections[0].append(f'![{measure(runs[0].rows)} against cost](accuracy_cost.png)')
    if pictures is not None:
        codes = [row['skip'] for row in runs[0].rows if row['skip'] and (Path(pictures) / row['skip']).is_dir()]
        columns = (
            [Path(pictures) / code for code in dict.fromkeys((codes[0], codes[-1]))] if codes else [Path(pictures)]
        )
        contents['predictions.png'] = side_by_side(columns, num_pictures)
        what = f'Truth and predictions of {" and ".join(codes[:1] + codes[1:][-1:])}, each beside the other:'
        sections[0] += [what, '![predictions](predictions.png)']
    text = '\n\n'.join(line for section in sections for line in section) + '\n'
    write_together({folder / name: content for name, content in {**contents, 'report.md': text.encode()}.items()})
    return folder / 'report.md'
