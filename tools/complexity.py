"""Print what operating points of a config cost, in GMACs and parameters: no data, no weights and no GPU needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _command import add_point_options, command
from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adn_mmdet import OperatingPoint, SkipConfig, UserError
from adn_mmdet.config import choose_codes, load_config, require_output
from adn_mmdet.cost import count_costs_of_points
from adn_mmdet.files import write_json
from adn_mmdet.input_size import default_input_size, own_point
from adn_mmdet.operating_point import parse_numbers

WORDS = (
    '1 MAC = 1 multiplication + 1 addition; FLOPs = 2 x MACs; the detection literature calls MACs FLOPs. '
    'Held parameters are in memory, for all depths; active ones are those that a depth uses. '
    'A two-stage detector is counted with the proposals of a point, or as many as its test settings keep at most, '
    '1000 on COCO.'
)
COLUMNS = {
    'backbone_gmacs': 'backbone',
    'neck_gmacs': 'neck',
    'heads_gmacs': 'heads',
    'gmacs': 'total',
    'params_held_m': 'params held (M)',
    'params_active_m': 'params active (M)',
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=WORDS)
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    add_point_options(parser, 'count', 'all')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help="of the image in pixels; default the test pipeline's"
    )
    parser.add_argument('--json', type=Path, help='write the result here as well')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


def count_rows(cfg: Config, points: Sequence[OperatingPoint], shape: tuple[int, int] | None) -> list[dict[str, Any]]:
    """One row a point, with ``skip``, ``size``, ``proposals`` and the keys of ``COLUMNS``."""
    model, own = MODELS.build(cfg.model), own_point(cfg)
    costs = count_costs_of_points(model, points, shape or cfg)
    own = own if shape in (None, default_input_size(cfg)) else OperatingPoint(None, None, own.proposals)
    return [{**point.filled(own).as_row(), **asdict(cost)} for point, cost in zip(points, costs)]


def choose_points(cfg: Config, skip: str | None, sizes: str | None, proposals: str | None) -> list[OperatingPoint]:
    """The points that the flags ask for; their codes are None for a detector without depths."""
    codes = choose_codes(cfg, skip)
    if codes and skip is None:
        codes = SkipConfig.all(codes[0].groups)
    return OperatingPoint.product(codes or [None], parse_numbers('size', sizes), parse_numbers('proposals', proposals))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if args.shape and min(args.shape) <= 0:
        raise UserError(f'--shape should be two positive numbers, but got {args.shape[0]} {args.shape[1]}')
    if args.json:
        require_output(args.json)
    if args.shape and args.sizes:
        raise UserError('--shape and --sizes both say how large images are: give one of them')
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    points = choose_points(cfg, args.skip, args.sizes, args.proposals)
    height, width = shape = tuple(args.shape or default_input_size(cfg))
    rows = count_rows(cfg, points, args.shape and shape)
    at = 'their sizes' if args.sizes else f'1×3×{height}×{width}'
    table = Table(title=Text(f'{Path(args.config).stem}, {at}, in GMACs'))
    for heading in ('point', *COLUMNS.values()):
        table.add_column(heading, justify='right')
    for point, row in zip(points, rows):
        table.add_row(str(point) or '–', *(f'{row[name]:.2f}' for name in COLUMNS))
    Console(file=sys.stdout).print(table)
    if args.json:
        write_json(args.json, dict(config=args.config, shape=shape, rows=rows))


if __name__ == '__main__':
    raise SystemExit(main())
