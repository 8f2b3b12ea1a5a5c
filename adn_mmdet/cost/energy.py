"""What energy a detection takes, where the machine has a meter: NVML of a GPU or RAPL of a processor, through zeus."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch

Name = TypeVar('Name')
LEAST_SECONDS = 1.0  # of a measurement: a GPU's counter moves about ten times a second


class Meter(Protocol):
    """Measures the energy of what runs between two calls."""

    def begin(self) -> None:
        """Begin to measure; work on a GPU is waited for."""

    def end(self) -> float:
        """Joules since :meth:`begin`; work on a GPU is waited for."""


class ZeusMeter:
    """The meter of zeus: all of a GPU, or of the processors with their memory, whoever else uses them.

    Args:
        device: a GPU, or the CPU.

    Raises:
        LookupError: the machine does not say, or does not let this user ask.
        ImportError: zeus is not installed (the extra ``energy``).
    """

    def __init__(self, device: torch.device) -> None:
        logging.getLogger('zeus').setLevel(logging.ERROR)  # it warns that other makers' drivers are absent
        from zeus.monitor import ZeusMonitor

        is_gpu = device.type == 'cuda'
        gpus = [torch.cuda.current_device() if device.index is None else device.index] if is_gpu else []
        self.monitor = ZeusMonitor(gpu_indices=gpus, cpu_indices=[] if is_gpu else None)
        if not (self.monitor.gpu_indices or self.monitor.cpu_indices):
            raise LookupError('no NVML or RAPL')

    def begin(self) -> None:
        """Begin to measure; work on a GPU is waited for."""
        self.monitor.begin_window('calls', restart=True)

    def end(self) -> float:
        """Joules since :meth:`begin`; work on a GPU is waited for."""
        found = self.monitor.end_window('calls')
        return sum(sum((part or {}).values()) for part in (found.gpu_energy, found.cpu_energy, found.dram_energy))


def find_meter(device: torch.device) -> Meter | None:
    """The energy meter of a device; None where zeus is not installed or the machine has none that can be read."""
    try:
        return ZeusMeter(device)
    except Exception:  # whatever drivers and their bindings raise
        return None


def measure_energy(calls: Mapping[Name, Callable[[], object]], images: int, meter: Meter) -> dict[Name, float]:
    """Measure the energy of functions, one after the other.

    Args:
        calls: what to call again and again, by name.
        images: how many one call is about.
        meter: measures it.

    Returns:
        Millijoules an image, by name; nothing, with a warning of one line, where the meter fails.
    """
    found: dict[Name, float] = {}
    for name, call in calls.items():
        number, start = 0, time.perf_counter()
        try:
            meter.begin()
        except Exception as error:
            return _without(error)
        while not number or time.perf_counter() - start < LEAST_SECONDS:
            call()
            number += 1
        try:
            joules = meter.end()
        except Exception as error:
            return _without(error)
        if not joules > 0:
            return _without(ValueError(f'it says {joules} J'))
        found[name] = 1e3 * joules / (number * images)
    return found


def _without(error: Exception) -> dict[Name, float]:
    reason = ' '.join(str(error).split())[:200]
    warnings.warn(
        f'the energy meter fails ({type(error).__name__}: {reason}): times are kept, energy is left out', stacklevel=4
    )
    return {}
