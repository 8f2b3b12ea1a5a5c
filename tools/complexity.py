"""Print what each depth of a config costs, in GMACs and parameters: no data, no weights and no GPU needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _command import command
from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.config import choose_codes, load_config, require_output
from adn_mmdet.cost.macs import count_costs_by_part
from adn_mmdet.files import write_json
from adn_mmdet.input_size import default_input_size

WORDS = (
    '1 MAC = 1 multiplication + 1 addition; FLOPs = 2 x MACs; the detection literature calls MACs FLOPs. '
    'Held parameters are in memory, for all depths; active ones are those that a depth uses. '
    'A two-stage detector is counted with as many region proposals as its test settings keep at most: 1000 on COCO.'
)
COLUMNS = {
    'skip': 'skip',
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
    parser.add_argument('--skip', help='a code, a comma list of codes, or all; default all')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help="of the image in pixels; default the test pipeline's"
    )
    parser.add_argument('--json', type=Path, help='write the result here as well')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


def count_rows(cfg: Config, skip: str | None, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """One row a code, with the keys of ``COLUMNS``; one whose ``skip`` is None for a detector without depths."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    codes = choose_codes(cfg, skip)
    if codes and skip is None:
        codes = SkipConfig.all(len(codes[0]))
    costs = count_costs_by_part(MODELS.build(cfg.model), codes, shape)
    names = [str(code) for code in codes] if codes else [None]
    return [{'skip': name, **asdict(cost)} for name, cost in zip(names, costs)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if args.shape and min(args.shape) <= 0:
        raise UserError(f'--shape should be two positive numbers, but got {args.shape[0]} {args.shape[1]}')
    if args.json:
        require_output(args.json)
    cfg = load_config(args.config, args.cfg_options)
    height, width = shape = tuple(args.shape or default_input_size(cfg))
    rows = count_rows(cfg, args.skip, shape)
    table = Table(title=Text(f'{Path(args.config).stem}, 1×3×{height}×{width}, in GMACs'))
    for heading in COLUMNS.values():
        table.add_column(heading, justify='right')
    for row in rows:
        table.add_row(row['skip'] or '–', *(f'{row[name]:.2f}' for name in list(COLUMNS)[1:]))
    Console(file=sys.stdout).print(table)
    if args.json:
        write_json(args.json, dict(config=args.config, shape=shape, rows=rows))


if __name__ == '__main__':
    raise SystemExit(main())
