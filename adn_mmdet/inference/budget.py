"""What an operating point takes on this device, measured once and kept in a cache folder, and what it is worth."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..backbones import AdaptiveDepthBackbone
from ..cost.images import TimedImages
from ..cost.latency import measure_latency, with_references
from ..cost.timing import describe_machine
from ..errors import UserError
from ..export.artifact import Artifact
from ..files import write_json
from ..input_size import pipeline_at
from ..operating_point import OperatingPoint
from ..results.rows import SCHEMA, Row, of_weights, read_latency, read_sub_nets
from ..skip_config import Groups, SkipConfig

NAMES = ('name', 'config', 'rounds')  # what two calibrations of the same may differ in


def cache_folder() -> Path:
    """Where calibrations are kept unless the user says: ``$XDG_CACHE_HOME/adn_mmdet``, by default in ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'adn_mmdet'


def calibrate(
    model: nn.Module,
    points: Sequence[OperatingPoint],
    run: dict[str, Any],
    images: TimedImages,
    cfg: Config,
    folder: Path,
    input_size: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """The latency of each operating point: from the cache, else measured, interleaved in one run, and put there.

    The super-net at the size and proposals of each is measured with it, and is in the file.

    Args:
        model: a detector, on the device that is asked about.
        points: at which it may run; those of the config's own size and proposals have None.
        run: what a latency file says of a run beside the machine and the images; ``rounds`` is the least that a
            cached calibration must have, and ``checkpoint_sha256`` tells weights apart.
        images: what to detect on.
        cfg: the detector's config; another model, but for its stored skip, or test pipeline is another entry.
        folder: the cache; a file in it is as those of ``tools/benchmark.py latency --json``.
        input_size: height and width in pixels that images are fitted into; None prepares them by the test pipeline.

    Returns:
        One row a point, with the keys of :class:`~adn_mmdet.cost.latency.LatencyRow`.

    Raises:
        UserError: as ``measure_latency`` does.
    """
    run = run | describe_machine(next(model.parameters()).device) | dict(images=images.about())
    path = folder / f'latency_{run["name"]}_{_key(run, cfg)}.json'
    rows = _find(path, points, run['rounds'])
    if rows is None:
        height, width = run['input_size']
        timed = with_references(points)
        kind = 'points' if any(point.size or point.proposals for point in timed) else 'depths'
        inputs = f'{run["batch_size"]}×3×{height}×{width}, on {run["device"]}, with {images.source}'
        print(f'Calibrating {len(timed)} {kind}, {inputs}: once, into {path}')
        settings = {name: run[name] for name in ('batch_size', 'rounds', 'amp', 'channels_last')}
        measured = measure_latency(model, timed, input_size or cfg, **settings, images=images)
        found = {point: row.as_row() for point, row in zip(timed, measured)}
        _keep(path, dict(schema=SCHEMA, kind='latency', run=run, rows=list(found.values())))
        rows = [found[point] for point in points]
    return rows


def _key(run: dict[str, Any], cfg: Config) -> str:
    model = {**cfg.model, 'backbone': {key: value for key, value in cfg.model['backbone'].items() if key != 'skip'}}
    about = {key: value for key, value in run.items() if key not in NAMES}
    content = json.dumps([model, pipeline_at(cfg), about], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _find(path: Path, points: Sequence[OperatingPoint], rounds: int) -> list[dict[str, Any]] | None:
    """The rows of ``points`` in a cached calibration; None where it is absent, broken or of fewer points or rounds."""
    try:
        latency = read_latency(path)
    except UserError:
        return None
    rows = {OperatingPoint.from_row(row): row for row in latency.rows}
    enough = rows.keys() >= set(points) and latency.run.rounds >= rounds
    return [rows[point] for point in points] if enough else None


def _keep(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:  # the numbers are good all the same
        warnings.warn(f'the calibration cannot be kept in {path.parent} ({error.strerror})', stacklevel=3)


def worth_by_depth(backbone: AdaptiveDepthBackbone) -> dict[OperatingPoint, float]:
    """For each code, at the config's own size and proposals, minus the number of blocks that it skips."""
    codes = SkipConfig.all(backbone.letter_groups)
    return {OperatingPoint(code): -float(len(backbone.skipped_blocks(code))) for code in codes}


def worth_in_file(artifact: Artifact, metric: str) -> dict[OperatingPoint, float]:
    """For each code that an exported file has an AP of, its AP."""
    rows = [row for row in artifact.about['rows'] if isinstance(row.get(metric), (int, float))]
    return {OperatingPoint(SkipConfig.parse(row['skip'])): float(row[metric]) for row in rows}


def tested_rows(
    path: str | os.PathLike[str],
    checkpoint_sha256: str | None,
    groups: Groups,
    metric: str,
    own: OperatingPoint,
) -> dict[OperatingPoint, Row]:
    """For each operating point that was tested with these weights, its row.

    Args:
        path: a ``sub_nets.json`` of tools/test.py, or the work folder that holds one.
        checkpoint_sha256: of the weights that are to run.
        groups: how many letters the groups of a code have.
        metric: which of the file's metrics the rows must have.
        own: the size and proposals of the config that is to run, which are None in what is returned; those that it
            does not know are the tested config's.

    Raises:
        UserError: there is no such file, or it is of other weights, of recalibrated norms, or has no such metric.
    """
    tested = of_weights(read_sub_nets(path), checkpoint_sha256)
    own = own.filled(OperatingPoint(None, tested.run.size, tested.run.proposals))
    rows = [row for row in tested.rows if row['skip'] is not None and row.get(metric) is not None]
    if not rows:
        raise UserError(f'{path} has no {metric} of any depth: test them with tools/test.py --skip all')
    points = [OperatingPoint.parse(OperatingPoint.from_row(row), groups).relative_to(own) for row in rows]
    return dict(zip(points, rows))
