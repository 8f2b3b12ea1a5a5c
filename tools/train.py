"""Train a detector; mmdet's flags.

Exit codes: 0, 2 for what is said in one line, 75 (PREEMPTED) after SIGTERM or SIGUSR1, when a checkpoint was saved that
--resume goes on from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from _command import command, run_config, run_parser

from adn_mmdet.training import train


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
    train(run_config(args, 'train_dataloader', 'train_cfg', 'optim_wrapper'), args.resume, args.amp, args.auto_scale_lr)


if __name__ == '__main__':
    raise SystemExit(main())
