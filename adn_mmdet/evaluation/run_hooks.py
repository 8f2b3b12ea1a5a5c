"""Hooks of a test run: RowsHook writes its results, ProgressHook shows how far it is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.progress import Progress

from ..cost.macs import Cost
from ..results.rows import add_row
from ..skip_config import SkipConfig


class RowsHook(Hook):
    """Adds a row to ``WORK_DIR/sub_nets.json`` as soon as a sub-network is evaluated.

    Args:
        work_dir: where the file is.
        run: what the numbers depend on, as in :func:`~adn_mmdet.results.report.add_row`.
        costs: by code; by None for a detector that has no depth to choose.
    """

    def __init__(
        self, work_dir: str | os.PathLike[str], run: dict[str, Any], costs: Mapping[SkipConfig | None, Cost]
    ) -> None:
        self.work_dir, self.run, self.costs = work_dir, run, costs

    @master_only
    def after_sub_net(self, runner: Runner, code: SkipConfig | None, metrics: dict[str, float]) -> None:
        """Write the row; NaN, which JSON lacks, becomes None."""
        named = {name.rpartition('/')[2]: None if math.isnan(value) else value for name, value in metrics.items()}
        row = {'skip': str(code) if code else None, **named, **asdict(self.costs[code])}
        add_row(self.work_dir, self.run, row)


class ProgressHook(Hook):
    """Moves a progress bar on by one for every tested batch, and another one for every evaluated sub-network.

    Args:
        progress: a running one.
        num_batches: how many are tested.
        num_sub_nets: how many are evaluated.
    """

    def __init__(self, progress: Progress, num_batches: int, num_sub_nets: int) -> None:
        self.progress = progress
        self.batches = progress.add_task('Testing batches', total=num_batches)
        self.sub_nets = progress.add_task('Evaluating depths', total=num_sub_nets)

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Move on by one batch."""
        self.progress.advance(self.batches)

    def after_sub_net(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Move on by one sub-network."""
        self.progress.advance(self.sub_nets)
