"""Test a detector at operating points: depths, input sizes and numbers of proposals; the other flags are mmdet's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from _command import add_point_options, check_skip, command, run_config, run_parser
from mmdet.engine.hooks.utils import trigger_visualization_hook

from adn_mmdet import UserError
from adn_mmdet.evaluation import evaluate_sub_nets
from adn_mmdet.export.artifact import is_artifact, require_as_it_is


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file, or an exported .onnx, whose own AP is then measured')
    add_point_options(parser, 'test')
    parser.add_argument('--out', help='dump predictions to this .pkl file (of several points: one file each)')
    parser.add_argument('--show', action='store_true', help='show predictions')
    parser.add_argument('--show-dir', help='save painted images here (of several points: a folder each)')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown images')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on the CPU')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation (boxes only)')
    parser.add_argument(
        '--allow-untrained', action='store_true', help='test skipped depths of weights without skip-aware norms'
    )
    parser.add_argument('--allow-mismatch', action='store_true', help='go on with missing or unexpected weights')
    parser.add_argument('--norms', help='statistics of this depth, from tools/recalibrate.py')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    check_skip(args)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out should be a .pkl file, but got {args.out}')
    if is_artifact(args.checkpoint):
        require_as_it_is(args.checkpoint, args.cfg_options)
    cfg = run_config(args, 'test_dataloader', 'test_evaluator', 'test_cfg')
    if args.show or args.show_dir:
        args.show_dir = args.show_dir and os.path.abspath(args.show_dir)  # else mmdet nests it in the work folder
        if not cfg.setdefault('default_hooks', {}).get('visualization'):
            cfg.default_hooks.visualization = dict(type='DetVisualizationHook')
        cfg = trigger_visualization_hook(cfg, args)
    evaluate_sub_nets(
        cfg,
        args.checkpoint,
        args.skip,
        tta=args.tta,
        dump=args.out,
        allow_untrained=args.allow_untrained,
        allow_mismatch=args.allow_mismatch,
        norms=args.norms,
        amp=args.amp,
        sizes=args.sizes,
        proposals=args.proposals,
    )


if __name__ == '__main__':
    raise SystemExit(main())
