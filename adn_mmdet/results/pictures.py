"""Painted pictures of operating points: found, and put beside each other."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from ..errors import UserError
from .plot import png
from .rows import Row

MOST_PIXELS = (480, 480)  # of a picture in a page


def painted(rows: Sequence[Row], row: Row, folder: Path) -> Path | None:
    """The folder of a row's pictures, spelled with or without what all rows have or the config has; None without."""
    of_run = [other for other in rows if other.get('run') == row.get('run')]
    spelled = [row['skip']]
    for key, mark in (('size', '@'), ('proposals', '-')):
        values = {other[key] for other in of_run}
        own = {other[key] for other in of_run if other['is_reference']}
        with_it = [f'{text}{mark}{row[key]}' for text in spelled]
        spelled = with_it + (spelled if len(values) == 1 or row[key] in own else [])
    return next((folder / name for name in spelled if (folder / name).is_dir()), None)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of their names."""
    return sorted(path for path in folder.glob('[!.]*') if path.is_file())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in one line which picture cannot be read."""
    try:
        yield
    except Exception as error:  # every decoder has its own
        reason = str(error).partition('\n')[0][:60]
        raise UserError(f'cannot read the picture {path} ({reason}): paint it again') from error


def data_uri(path: Path) -> str:
    """A picture as a small JPEG file inside a page.

    Raises:
        UserError: it cannot be read.
    """
    buffer = io.BytesIO()
    with _reading(path), Image.open(path) as image:
        image.thumbnail(MOST_PIXELS)
        image.convert('RGB').save(buffer, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def side_by_side(folders: Sequence[Path], num_pictures: int) -> bytes:
    """A PNG file of the pictures that all folders have, a row a name and a column a folder.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    shared = set.intersection(*({path.name for path in pictures_in(folder)} for folder in folders))
    if not shared:
        raise UserError(f'{" and ".join(map(str, folders))}: no pictures, paint them with tools/test.py --show-dir')
    paths = [[folder / name for folder in folders] for name in sorted(shared)[:num_pictures]]
    figure = Figure(figsize=(4 * len(folders), 2 * len(paths)), dpi=120, layout='compressed')
    for path, axis in zip(sum(paths, []), figure.subplots(len(paths), len(folders), squeeze=False).flat):
        with _reading(path):
            axis.imshow(imread(path))
        axis.set_axis_off()
        axis.set_title(path.parent.name if path in paths[0] else '', fontsize=10, parse_math=False)
    return png(figure)
