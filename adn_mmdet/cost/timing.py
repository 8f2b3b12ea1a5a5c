"""Times functions against each other: interleaved, because machines are noisy."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import mmdet
import torch
from rich.progress import track
from torch.utils.benchmark import timer

from ..errors import UserError

Name = TypeVar('Name')
Result = TypeVar('Result')


def interleave(functions: Mapping[Name, Callable[[], Result]], rounds: int, warmup: int) -> dict[Name, list[Result]]:
    """Call the functions in turn, once a round, and collect what they return, by name.

    Args:
        functions: what to call, by name.
        rounds: how often.
        warmup: rounds before these, whose results are dropped.
    """
    results: dict[Name, list[Result]] = {name: [] for name in functions}
    for number in track(range(-warmup, rounds), description='Timing'):
        for name, function in functions.items():
            result = function()
            if number >= 0:
                results[name].append(result)
    return results


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], rounds: int = 60, warmup: int = 5
) -> dict[str, float]:
    """Time the functions in turn, once a round.

    Args:
        functions: what to time, by name.
        rounds: timed calls of each.
        warmup: untimed calls of each before.

    Returns:
        Median seconds of a call, by name; work on a GPU is waited for.
    """
    timed = {name: partial(seconds, function) for name, function in functions.items()}
    return {name: median(times) for name, times in interleave(timed, rounds, warmup).items()}


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes; work on a GPU is waited for."""
    start = timer()
    function()
    return timer() - start


def require_counts(**numbers: Any) -> None:
    """Make sure that numbers, given by name, are whole and at least 1.

    Raises:
        UserError: one is not.
    """
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f'{name} should be a whole number, but got {value!r}')
        if value < 1:
            raise UserError(f'{name} should be at least 1, but got {value}')


def find_device(name: Any = None) -> torch.device:
    """A device by its name, such as ``cuda:0``; None takes a GPU if there is one.

    Raises:
        UserError: it cannot be used.
    """
    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(name or ('cuda' if has_gpu else 'cpu'))
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if has_gpu or 'cuda' not in str(name) else 'torch sees no GPU'
        raise UserError(
            f'device {name!r} cannot be used ({reason}): give cpu, or cuda:0 where there is a GPU'
        ) from error
    return device


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a time depends on beside what is timed: the device's name, the threads and the versions."""
    versions = dict(python=platform.python_version(), torch=torch.__version__, mmdet=mmdet.__version__)
    return dict(device=_device_name(device), threads=torch.get_num_threads(), versions=versions)


def _device_name(device: torch.device) -> str:
    """What a device is called, such as the model of a GPU or of a processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):  # not Linux, or a processor without that line
        return platform.processor() or platform.machine() or device.type
