"""What a latency file holds: one row an operating point of a detector, and what they depend on; printed as a table."""

from __future__ import annotations

import os
import sys
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
from ..input_size import default_input_size, own_point
from ..operating_point import OperatingPoint, parse_numbers
from ..results.rows import SCHEMA
from ..skip_config import SkipConfig
from .energy import find_meter
from .images import NOISE, find_images
from .latency import measure_latency, with_references
from .timing import describe_machine, find_device

COLUMNS = {
    'ms': 'ms',
    'ms_p90': 'p90',
    'decode_ms': 'decode',
    'resize_ms': 'resize',
    'backbone_ms': 'backbone',
    'neck_ms': 'neck',
    'heads_ms': 'heads',
    'post_ms': 'post',
}
NARROWEST = 110  # characters that a table of all columns takes
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
    sizes: str | None = None,
    proposals: str | None = None,
) -> dict[str, Any]:
    """Time a config's detector at operating points, end to end; see :func:`~adn_mmdet.cost.latency.measure_latency`.

    Args:
        cfg: a config.
        checkpoint: local weights; None times untrained ones.
        skip: a code, a comma list of codes, or ``all``; None takes all.
        shape: height and width in pixels that images are fitted into; None prepares them by the test pipeline.
        device: such as ``cpu``; None takes a GPU if there is one.
        batch_size: images a call.
        rounds: timed calls of each sub-network, in turn.
        amp: run in mixed precision.
        channels_last: run in that memory format.
        compiled: run the backbone's stages through torch.compile.
        allow_untrained: time skipped sub-networks of weights without skip-aware norms.
        allow_mismatch: go on although weights are missing or left over.
        images: a folder of images to detect on; None takes the config's test set, and noise where that is not there.
        sizes: a comma list of short sides in pixels; None takes the config's own.
        proposals: a comma list of numbers of region proposals; None takes the config's own.

    Returns:
        What the latency file holds: ``schema``, ``kind``, ``run`` (what the numbers depend on) and ``rows``, each with
        the fields of :class:`~adn_mmdet.cost.latency.LatencyRow`. Size and proposals of a row are numbers, the config's
        own too, as those of ``sub_nets.json``. The first row is the super-net at the config's own, and the super-net
        is there at every size and number of proposals.

    Raises:
        UserError: for whatever a user can get wrong.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    own, input_size = own_point(cfg), tuple(shape or default_input_size(cfg))
    if input_size != default_input_size(cfg):
        own = OperatingPoint(None, None, own.proposals)
    points = _choose(cfg, skip, sizes, proposals, own)
    if shape and sizes:
        raise UserError('--shape and --sizes both say how large images are: give one of them')
    timed = find_images(cfg, images)
    where = find_device(device)
    model = MODELS.build(cfg.model).to(where)
    if checkpoint:
        codes = [point.skip for point in points if point.skip]
        load_for_testing(model, checkpoint, codes, allow_untrained, allow_mismatch)
    if compiled:
        compile_stages(model)
    settings: dict[str, Any] = dict(batch_size=batch_size, rounds=rounds, amp=amp, channels_last=channels_last)
    try:
        rows = measure_latency(model, points, shape or cfg, **settings, images=timed, meter=find_meter(where))
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
        input_size=list(input_size),
        size=own.size,
        proposals=own.proposals,
        **settings,
        compile=compiled,
        images=timed.about(),
    )
    # An exported file knows what its numbers depend on, and is one graph, whose parts cannot be timed.
    of_file: dict[str, Any] = getattr(model, 'facts', {})
    parts = dict.fromkeys(('backbone_ms', 'neck_ms', 'heads_ms', 'post_ms')) if of_file else {}
    found = [row.as_row() | point.filled(own).as_row() | parts for row, point in zip(rows, points)]
    return dict(schema=SCHEMA, kind='latency', run=run | of_file, rows=found)


def _choose(
    cfg: Config, skip: str | None, sizes: str | None, proposals: str | None, own: OperatingPoint
) -> list[OperatingPoint]:
    """The points to time, and what they are compared with; the config's own size and proposals are None."""
    codes = choose_codes(cfg, skip)
    if codes and skip is None:
        codes = SkipConfig.all(codes[0].groups)
    asked = OperatingPoint.product(codes or [None], parse_numbers('size', sizes), parse_numbers('proposals', proposals))
    return with_references([point.relative_to(own) for point in asked])


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
        f'Medians of {run["rounds"]} interleaved rounds, ms a batch, from image files to detections. '
        f'ratio: to the first row, 95 %: its interval; depth: to FFFF at the same size and proposals. {versions}.'
    )
    source, number = run['images']['source'], run['images']['number']
    caption += f'\n{ON_NOISE if source == NOISE else f"On {number} images of {source}."}'
    caption += '' if run['checkpoint_sha256'] else f'\n{UNTRAINED}'
    table = Table(title=Text(title), caption=Text(caption), padding=0)
    has_energy = any('mj' in row for row in rows)
    headings = 'point', *COLUMNS.values(), 'ratio', '95 %', 'depth', *(['mJ'] if has_energy else [])
    for heading in headings:
        table.add_column(heading, justify='right', no_wrap=True)
    for row in rows:
        ratios = f'{row["ratio"]:.3f}', f'{row["ratio_low"]:.2f}–{row["ratio_high"]:.2f}'
        depth = '–' if row['depth_ratio'] is None else f'{row["depth_ratio"]:.3f}'
        energy = [f'{row["mj"]:.0f}'] if has_energy else []
        point = str(OperatingPoint.from_row(row)) or '–'
        table.add_row(
            point, *('–' if row[name] is None else f'{row[name]:.2f}' for name in COLUMNS), *ratios, depth, *energy
        )
    console = Console(file=sys.stdout)
    console.width = max(console.width, NARROWEST)
    console.print(table)
