"""This device's latency of each depth, measured once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from torch import nn

from ..cost.latency import measure_latency
from ..cost.latency_run import describe_machine
from ..errors import UserError
from ..files import write_atomically
from ..results.rows import SCHEMA, read_latency
from ..skip_config import SkipConfig

WHERE = ('device', 'threads', 'versions', 'batch_size', 'input_size', 'amp', 'channels_last', 'compile')


def cache_folder() -> Path:
    """Where calibrations are kept unless the user says: ``$XDG_CACHE_HOME/adn_mmdet``, by default in ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'adn_mmdet'


def calibrate(
    model: nn.Module, codes: Sequence[SkipConfig], run: dict[str, Any], model_config: ConfigDict, folder: Path
) -> list[dict[str, Any]]:
    """The latency of each sub-network: from the cache, else measured, interleaved in one run, and put there.

    Args:
        model: a detector, on the device that is asked about.
        codes: its sub-networks.
        run: what a latency file says of a run beside device, threads and versions; ``rounds`` is the least that a
            cached calibration must have.
        model_config: the detector's config; another one, but for its stored skip, is another entry.
        folder: the cache; a file in it is as those of ``tools/benchmark.py latency --json``.

    Returns:
        One row a code, with the keys of :class:`~adn_mmdet.cost.latency.LatencyRow`.

    Raises:
        UserError: as ``measure_latency`` does.
    """
    run = run | describe_machine(next(model.parameters()).device)
    path = folder / f'latency_{run["name"]}_{_key(run, model_config)}.json'
    rows = _find(path, codes, run['rounds'])
    if rows is None:
        height, width = run['input_size']
        images = f'{run["batch_size"]}×3×{height}×{width}'
        print(f'Calibrating {len(codes)} depths, {images}, on {run["device"]}: once, into {path}')
        settings = {name: run[name] for name in ('input_size', 'batch_size', 'rounds', 'amp', 'channels_last')}
        rows = [asdict(row) for row in measure_latency(model, codes, **settings)]
        _keep(path, dict(schema=SCHEMA, kind='latency', run=run, rows=rows))
    return rows


def _key(run: dict[str, Any], model_config: ConfigDict) -> str:
    backbone = {key: value for key, value in model_config['backbone'].items() if key != 'skip'}
    settings = [{**model_config, 'backbone': backbone}, {name: run[name] for name in WHERE}]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _find(path: Path, codes: Sequence[SkipConfig], rounds: int) -> list[dict[str, Any]] | None:
    """The rows of ``codes`` in a cached calibration; None where it is absent, broken or of fewer codes or rounds."""
    try:
        latency = read_latency(path)
    except UserError:
        return None
    rows = {row['skip']: row for row in latency.rows}
    enough = rows.keys() >= set(map(str, codes)) and latency.run.rounds >= rounds
    return [rows[str(code)] for code in codes] if enough else None


def _keep(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=2).encode())
    except OSError as error:  # the numbers are good all the same
        warnings.warn(f'the calibration cannot be kept in {path.parent} ({error.strerror})', stacklevel=3)
