"""Times functions against each other: interleaved in one run, because machines are noisy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from rich.progress import track


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], rounds: int = 60, warmup: int = 5
) -> dict[str, float]:
    """Call the functions in turn, once a round.

    Args:
        functions: what to time, by name.
        rounds: timed calls of each.
        warmup: untimed calls of each before.

    Returns:
        Median seconds of a call, by name; work on a GPU is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for number in track(range(warmup + rounds), description='Timing'):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}
