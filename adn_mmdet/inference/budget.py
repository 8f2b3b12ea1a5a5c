"""What a depth takes on this device, measured once and kept in a cache folder, and what it is worth."""

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

from ..backbones import AdaptiveDepthBackbone
from ..cost.images import TimedImages
from ..cost.latency import measure_latency
from ..cost.timing import describe_machine
from ..errors import UserError
from ..export.artifact import Artifact
from ..files import write_json
from ..results.rows import SCHEMA, of_weights, read_latency, read_sub_nets
from ..skip_config import SkipConfig

NAMES = ('name', 'config', 'rounds')  # what two calibrations of the same may differ in


def cache_folder() -> Path:
    """Where calibrations are kept unless the user says: ``$XDG_CACHE_HOME/adn_mmdet``, by default in ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'adn_mmdet'


def calibrate(
    model: nn.Module,
    codes: Sequence[SkipConfig],
    run: dict[str, Any],
    images: TimedImages,
    model_config: ConfigDict,
    folder: Path,
) -> list[dict[str, Any]]:
    """The latency of each sub-network: from the cache, else measured, interleaved in one run, and put there.

    Args:
        model: a detector, on the device that is asked about.
        codes: its sub-networks.
        run: what a latency file says of a run beside the machine and the images; ``rounds`` is the least that a
            cached calibration must have, and ``checkpoint_sha256`` tells weights apart.
        images: what to detect on.
        model_config: the detector's config; another one, but for its stored skip, is another entry.
        folder: the cache; a file in it is as those of ``tools/benchmark.py latency --json``.

    Returns:
        One row a code, with the keys of :class:`~adn_mmdet.cost.latency.LatencyRow`.

    Raises:
        UserError: as ``measure_latency`` does.
    """
    run = run | describe_machine(next(model.parameters()).device) | dict(images=images.about())
    path = folder / f'latency_{run["name"]}_{_key(run, model_config)}.json'
    rows = _find(path, codes, run['rounds'])
    if rows is None:
        height, width = run['input_size']
        inputs = f'{run["batch_size"]}×3×{height}×{width}, on {run["device"]}, with {images.source}'
        print(f'Calibrating {len(codes)} depths, {inputs}: once, into {path}')
        settings = {name: run[name] for name in ('input_size', 'batch_size', 'rounds', 'amp', 'channels_last')}
        rows = [asdict(row) for row in measure_latency(model, codes, **settings, images=images)]
        _keep(path, dict(schema=SCHEMA, kind='latency', run=run, rows=rows))
    return rows


def _key(run: dict[str, Any], model_config: ConfigDict) -> str:
    backbone = {key: value for key, value in model_config['backbone'].items() if key != 'skip'}
    about = {key: value for key, value in run.items() if key not in NAMES}
    content = json.dumps([{**model_config, 'backbone': backbone}, about], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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
        write_json(path, content)
    except OSError as error:  # the numbers are good all the same
        warnings.warn(f'the calibration cannot be kept in {path.parent} ({error.strerror})', stacklevel=3)


def worth_by_depth(backbone: AdaptiveDepthBackbone) -> dict[SkipConfig, float]:
    """For each code, minus the number of blocks that it skips."""
    return {code: -float(len(backbone.skipped_blocks(code))) for code in SkipConfig.all(backbone.num_stages)}


def worth_in_file(artifact: Artifact, metric: str) -> dict[SkipConfig, float]:
    """For each code that an exported file has an AP of, its AP."""
    rows = [row for row in artifact.about['rows'] if isinstance(row.get(metric), (int, float))]
    return {SkipConfig.parse(row['skip']): float(row[metric]) for row in rows}


def worth_by_accuracy(
    path: str | os.PathLike[str], checkpoint_sha256: str | None, num_stages: int, metric: str = 'bbox_mAP'
) -> dict[SkipConfig, float]:
    """For each code that was tested with these weights, its AP.

    Args:
        path: a ``sub_nets.json`` of tools/test.py, or the work folder that holds one.
        checkpoint_sha256: of the weights that are to run.
        num_stages: letters of a code.
        metric: which of the file's metrics.

    Raises:
        UserError: there is no such file, or it is of other weights, of recalibrated norms, or has no such metric.
    """
    rows = of_weights(read_sub_nets(path), checkpoint_sha256).rows
    rows = [row for row in rows if row['skip'] is not None and row.get(metric) is not None]
    if not rows:
        raise UserError(f'{path} has no {metric} of any depth: test them with tools/test.py --skip all')
    return {SkipConfig.parse(row['skip'], num_stages): row[metric] for row in rows}
