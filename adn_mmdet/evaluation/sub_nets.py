"""Tests the sub-networks of one detector over one data loader, one row of results each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..backbones.adaptive_depth import find_backbone
from ..skip_config import SkipConfig
from .complexity import count_costs

Row = dict[str, Any]


class ProgressHook(Hook):
    """Moves a progress bar on by one for every tested batch."""

    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self.progress = progress
        self.task = progress.add_task(f'Testing {label}', total=total)

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Move on by one batch."""
        self.progress.advance(self.task)


def iterate_sub_nets(runner: Runner, codes: Sequence[SkipConfig] | None, input_size: tuple[int, int]) -> Iterator[Row]:
    """Test each sub-network and yield its row as soon as it is known.

    Args:
        runner: with the weights to test in its model.
        codes: the sub-networks; None for a detector that has no depth to choose.
        input_size: height and width in pixels at which the cost is counted.

    Yields:
        ``skip`` (a code, or None), the metrics of the runner's evaluator (None where a size has no object), and the
        fields of :class:`~adn_mmdet.evaluation.complexity.Cost`.
    """
    costs = count_costs(runner.model, codes, input_size)
    if not codes:
        yield {'skip': None, **_test(runner, 'the detector'), **asdict(costs[0])}
        return
    backbone = find_backbone(runner.model)
    for code, cost in zip(codes, costs):
        with backbone.using_skip(code), _own_outputs(runner, str(code) if len(codes) > 1 else ''):
            metrics = _test(runner, str(code))
        yield {'skip': str(code), **metrics, **asdict(cost)}  # outside: a generator must not hold a skip


def _test(runner: Runner, label: str) -> dict[str, float | None]:
    """Run the test loop once; NaN, which JSON lacks, becomes None."""
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=runner.rank != 0) as progress:
        hook = ProgressHook(progress, label, len(runner.test_dataloader))
        runner.register_hook(hook, priority='LOWEST')
        try:
            metrics = runner.test()
        finally:
            runner.hooks.remove(hook)
    named = {name.rpartition('/')[2]: value for name, value in metrics.items()}
    return {name: None if math.isnan(value) else value for name, value in named.items()}


@contextlib.contextmanager
def _own_outputs(runner: Runner, code: str) -> Iterator[None]:
    """Give one of several sub-networks its own folder of pictures and its own file of predictions."""
    restore = []
    for writer in (*runner.hooks, *runner.test_evaluator.metrics):
        for attribute in ('test_out_dir', 'out_file_path'):
            if code and (path := getattr(writer, attribute, None)):
                restore.append((writer, attribute, path))
                path = Path(path).absolute()
                own = path / code if attribute == 'test_out_dir' else path.with_stem(f'{path.stem}_{code}')
                setattr(writer, attribute, str(own))
    try:
        yield
    finally:
        for writer, attribute, path in restore:
            setattr(writer, attribute, path)
