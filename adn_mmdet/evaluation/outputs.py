"""What a test writes beside its metrics: where it goes for each operating point, and whether it can go there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.evaluation import DumpDetResults
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

from ..config import require_output, require_writable
from ..errors import UserError
from ..files import write_atomically
from ..operating_point import OperatingPoint

PAINTED = '.painted'  # in a folder of pictures: the names of those that were painted
ENDINGS = {'test_out_dir': '', 'out_file_path': '', 'outfile_prefix': '.bbox.json'}


@dataclass(frozen=True)
class Output:
    """A path that a hook or metric writes to.

    Attributes:
        writer: the hook or metric.
        attribute: where it has the path.
        path: as it is of one point.
    """

    writer: Any
    attribute: str
    path: str

    def path_of(self, point: OperatingPoint) -> str:
        """The path for one of several points: a folder or a file of its own, such as ``found_TTFF@640-300.pkl``."""
        path, name = Path(self.path).absolute(), str(point).replace('/', '-')
        own = path / name if self.attribute == 'test_out_dir' else path.with_stem(f'{path.stem}_{name}')
        return str(own if name else path)


def outputs_asked(runner: Runner, evaluator: Evaluator) -> list[Output]:
    """All that hooks and metrics are asked to write."""
    outputs = []
    for writer in (*runner.hooks, *evaluator.metrics):
        for attribute in ENDINGS:
            if path := getattr(writer, attribute, None):
                if attribute == 'test_out_dir':  # as mmdet takes it
                    path = os.path.join(runner.work_dir, runner.timestamp, path)
                outputs.append(Output(writer, attribute, path))
    return outputs


def require_outputs(outputs: Sequence[Output], points: Sequence[OperatingPoint], dataset: BaseDataset) -> None:
    """Make sure that all can be written, over nothing but what a test has written; folders are made.

    Raises:
        UserError: it cannot, or pictures would be painted over others'.
    """
    for output in outputs:
        paths = [output.path_of(point) for point in points] if len(points) > 1 else [output.path]
        if output.attribute == 'test_out_dir':
            _require_room(output.path, paths, dataset)
        else:
            for path in paths:
                require_output(f'{path}{ENDINGS[output.attribute]}')


def _require_room(asked: str, folders: Sequence[str], dataset: BaseDataset) -> None:
    """Make sure that pictures of a data set's images can be painted into folders; note which, in the one asked for."""
    images = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    taken = {os.path.realpath(parent) for parent in map(os.path.dirname, images)}
    if not taken.isdisjoint(map(os.path.realpath, (asked, *folders))):
        raise UserError(f'--show-dir {asked} holds images of the data set, which would be painted over: give another')
    for folder in (asked, *folders):
        require_writable(folder)
    names = {os.path.join(os.path.relpath(folder, asked), os.path.basename(i)) for folder in folders for i in images}
    note = Path(asked, PAINTED)
    painted = set(note.read_text(encoding='utf-8').splitlines()) if note.is_file() else set()
    if others := sorted(name for name in names - painted if Path(asked, name).exists()):
        raise UserError(
            f'{asked} holds {len(others)} files that would be painted over, such as {others[0]}: give another '
            '--show-dir, or move them'
        )
    write_atomically(note, '\n'.join(sorted(names | painted)).encode())


class AtomicDump(DumpDetResults):
    """mmdet's dump of predictions, to a file that is whole or not there."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Write the file."""
        write_atomically(self.out_file_path, pickle.dumps(results))
        return {}
