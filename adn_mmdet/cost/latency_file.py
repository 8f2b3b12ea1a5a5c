"""What a latency file holds: one row a depth of a config's detector, and what they depend on; printed as a table."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..backbones.compiled import compile_stages
from ..checkpoints import load_for_testing
from ..config import choose_codes
from ..errors import UserError
from ..files import file_sha256
from ..input_size import default_input_size
from ..results.rows import SCHEMA
from ..skip_config import SkipConfig
from .images import NOISE, find_images
from .latency import measure_latency
from .timing import describe_machine, find_device

COLUMNS = {
    'ms': 'ms',
    'ms_p90': 'p90',
    'ms_iqr': 'IQR',
    'backbone_ms': 'backbone',
    'neck_ms': 'neck',
    'heads_ms': 'heads',
    'post_ms': 'post',
}
UNTRAINED = 'Untrained weights: what they detect, hence the time of RoI heads and post-processing, is not typical.'
ON_NOISE = 'On noise, where what is found, hence the time of heads and of pasting, is not typical: give --images.'


def benchmark_latency(
    cfg: Config,
    checkpoint: str | os.PathLike[str] | None = None,
    skip: str | None = None,
    shape: tuple[int, int] | None = None,
    device: str | None = None,
    batch_size: int = 1,
    rounds: int = 20,
    amp: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
    allow_untrained: bool = False,
    allow_mismatch: bool = False,
    images: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Time a config's detector at each depth; see :func:`~adn_mmdet.cost.latency.measure_latency`.

    Args:
        cfg: a config.
        checkpoint: local weights; None times untrained ones.
        skip: a code, a comma list of codes, or ``all``; None takes all.
        shape: height and width of the images in pixels; None takes the test pipeline's.
        device: such as ``cpu``; None takes a GPU if there is one.
        batch_size: images a call.
        rounds: timed calls of each sub-network, in turn.
        amp: run in mixed precision.
        channels_last: run in that memory format.
        compiled: run the backbone's stages through torch.compile.
        allow_untrained: time skipped sub-networks of weights without skip-aware norms.
        allow_mismatch: go on although weights are missing or left over.
        images: a folder of images to detect on; None takes the config's test set, and noise where that is not there.

    Returns:
        What the latency file holds: ``schema``, ``kind``, ``run`` (what the numbers depend on) and ``rows``, each with
        the fields of :class:`~adn_mmdet.cost.latency.LatencyRow`.

    Raises:
        UserError: for whatever a user can get wrong.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    codes = choose_codes(cfg, skip)
    if codes and skip is None:
        codes = SkipConfig.all(len(codes[0]))
    timed = find_images(cfg, images)
    where = find_device(device)
    model = MODELS.build(cfg.model).to(where)
    if checkpoint:
        load_for_testing(model, checkpoint, codes or (), allow_untrained, allow_mismatch)
    if compiled:
        compile_stages(model)
    settings: dict[str, Any] = dict(
        input_size=list(shape or default_input_size(cfg)),
        batch_size=batch_size,
        rounds=rounds,
        amp=amp,
        channels_last=channels_last,
    )
    try:
        rows = measure_latency(model, codes, **settings, images=timed)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = str(error.inner_exception).splitlines()[0]
        raise UserError(
            f'torch.compile failed ({reason}): it needs a C++ compiler such as g++; or leave --compile out'
        ) from error
    run = dict(
        name=Path(cfg.filename).stem,
        config=cfg.filename,
        checkpoint_sha256=file_sha256(checkpoint) if checkpoint else None,
        **describe_machine(where),
        **settings,
        compile=compiled,
        images=timed.about(),
    )
    # An exported file knows what its numbers depend on, and is one graph, whose parts cannot be timed.
    of_file: dict[str, Any] = getattr(model, 'facts', {})
    parts = dict.fromkeys(('backbone_ms', 'neck_ms', 'heads_ms', 'post_ms')) if of_file else {}
    return dict(schema=SCHEMA, kind='latency', run=run | of_file, rows=[asdict(row) | parts for row in rows])


def print_latency(report: dict[str, Any]) -> None:
    """Print what :func:`benchmark_latency` returns as a table on the terminal."""
    run, rows = report['run'], report['rows']
    height, width = run['input_size']
    versions = ', '.join(f'{name} {version}' for name, version in run['versions'].items())
    switches = f', {run["runtime"]}' if run.get('runtime') else ''
    switches += ''.join(f', {name}' for name in ('amp', 'channels_last', 'compile') if run[name])
    title = (
        f'{run["name"]}, {run["batch_size"]}×3×{height}×{width}, {run["device"]}, threads: {run["threads"]}{switches}'
    )
    caption = (
        f'Medians of {run["rounds"]} interleaved rounds, ms a batch; 95 %: bootstrap interval of the ratio. {versions}.'
    )
    source, number = run['images']['source'], run['images']['number']
    caption += f'\n{ON_NOISE if source == NOISE else f"On {number} images of {source}."}'
    caption += '' if run['checkpoint_sha256'] else f'\n{UNTRAINED}'
    table = Table(title=Text(title), caption=Text(caption), padding=0)  # all columns in 80 characters
    for heading in ('skip', *COLUMNS.values(), 'ratio', '95 %'):
        table.add_column(heading, justify='right', no_wrap=True)
    for row in rows:
        ratios = f'{row["ratio"]:.3f}', f'{row["ratio_low"]:.2f}–{row["ratio_high"]:.2f}'
        table.add_row(
            row['skip'] or '–', *('–' if row[name] is None else f'{row[name]:.2f}' for name in COLUMNS), *ratios
        )
    Console(file=sys.stdout).print(table)
