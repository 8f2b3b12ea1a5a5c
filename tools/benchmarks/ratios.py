"""Times beside each other: seconds and ratios by name, as a table and as what goes into a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
Timings = tuple[dict[str, float], dict[str, float]]  # seconds and ratios, by name


def report_ratios(settings: Mapping[str, Any], timings: Timings) -> dict[str, Any]:
    """Print a table and return its content, with the ``settings`` and the machine that it depends on."""
    seconds, ratios = timings
    height, width = settings['shape']
    title = f'{settings["batch_size"]}×3×{height}×{width}, {DEVICE}, {torch.get_num_threads()} threads, '
    peak = torch.cuda.max_memory_allocated() / 2**20 if DEVICE == 'cuda' else None  # all nets are there together
    caption = f'peak memory of the GPU: {peak:.0f} MiB' if peak else None
    table = Table(title=title + f'medians of {settings["rounds"]} interleaved rounds', caption=caption)
    table.add_column('what')
    table.add_column('ms', justify='right')
    table.add_column('ratio', justify='right')
    for name, value in seconds.items():
        table.add_row(name, f'{1e3 * value:.4g}')
    for name, value in ratios.items():
        table.add_row(name, '', f'{value:.3f}')
    Console(file=sys.stdout).print(table)
    run = dict(settings, device=DEVICE, threads=torch.get_num_threads(), torch=torch.__version__, peak_mib=peak)
    return dict(run=run, seconds=seconds, ratios=ratios)
