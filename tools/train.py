"""Train a detector; mmdet's flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from _command import command, run_config, run_parser
from mmengine.runner import Runner

from adn_mmdet import UserError
from adn_mmdet.preflight import require_data, require_weights


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate to the GPUs' total batch size"
    )
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='go on from this checkpoint, or from the latest in the work folder'
    )
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    cfg = run_config(args)
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError('--amp needs a GPU, and torch sees none: train without it')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size, which {args.config} does not set')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    require_weights(cfg)
    require_data(cfg.train_dataloader)
    if cfg.get('val_dataloader'):
        require_data(cfg.val_dataloader)
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    raise SystemExit(main())
