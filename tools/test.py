"""Test a detector at one or more depths; mmdet's flags and --skip."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from _command import command
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmengine.config import DictAction

from adn_mmdet import UserError
from adn_mmdet.evaluation import evaluate_sub_nets
from adn_mmdet.preflight import load_config


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--skip', help="depths to test: a code (TTTT), a comma list of codes (FFFF,TTTT), or all; default the config's"
    )
    parser.add_argument('--work-dir', help='where sub_nets.json and logs go; default work_dirs/<config name>')
    parser.add_argument('--out', help='dump predictions to this .pkl file (of several depths: one file each)')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument('--show-dir', help='save painted images here (of several depths: a folder each)')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown images')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, such as model.test_cfg.…=…')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation (boxes only)')
    parser.add_argument(
        '--allow-untrained', action='store_true', help='test skipped depths of weights without skip-aware norms'
    )
    parser.add_argument('--allow-mismatch', action='store_true', help='go on with missing or unexpected weights')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    option = (args.cfg_options or {}).get('model.backbone.skip')
    if args.skip is not None and option is not None and args.skip.upper() != option.upper():
        raise UserError(f'--skip {args.skip} and model.backbone.skip={option} disagree: give one of them')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out should be a .pkl file, but got {args.out}')
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    if args.show or args.show_dir:
        args.show_dir = args.show_dir and os.path.abspath(args.show_dir)  # else mmdet nests it in the work folder
        cfg = trigger_visualization_hook(cfg, args)
    evaluate_sub_nets(
        cfg,
        args.checkpoint,
        args.skip,
        tta=args.tta,
        dump=args.out,
        allow_untrained=args.allow_untrained,
        allow_mismatch=args.allow_mismatch,
    )


if __name__ == '__main__':
    raise SystemExit(main())
