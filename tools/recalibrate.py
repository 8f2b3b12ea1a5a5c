"""Estimate the batch-norm statistics of one depth on training images, and save them in a file beside the checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from _command import check_skip, command, run_config, run_parser

from adn_mmdet import UserError
from adn_mmdet.checkpoints import recalibrate


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file; it is left as it is')
    parser.add_argument('--skip', required=True, help='the depth, one code such as TTFF')
    parser.add_argument('--batches', type=int, default=100, help='batches of training images; default 100')
    parser.add_argument('--out', help='file for tools/test.py --norms; default CHECKPOINT.norms_CODE.pth')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if args.launcher != 'none':
        raise UserError(f'--launcher {args.launcher}: norms are recalibrated in one process, leave --launcher out')
    check_skip(args)
    path = recalibrate(run_config(args), args.checkpoint, args.skip, args.batches, args.out)
    print(f'saved {path}, for tools/test.py --skip {args.skip} --norms {path}')


if __name__ == '__main__':
    raise SystemExit(main())
