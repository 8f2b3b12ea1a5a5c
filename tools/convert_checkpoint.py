"""Take the network out of a checkpoint of the authors, torchvision or OpenMMLab, for a config to start from.

DST is what `init_cfg=dict(type='Pretrained', checkpoint=DST)` of an adaptive-depth backbone takes. A file that is there
is replaced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from _command import command
from rich.console import Console

from adn_mmdet.checkpoints import KNOWN, convert_checkpoint


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='SRC', help='checkpoint file')
    parser.add_argument('out', metavar='DST', help='file to write')
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help="take the moving average, or the model's own weights; needed where SRC holds both",
    )
    parser.add_argument('--arch', choices=KNOWN, help='refuse anything else; default whichever it is')
    parser.add_argument(
        '--trust', action='store_true', help='unpickle whatever SRC holds: it may run code of whoever made it'
    )
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    conversion = convert_checkpoint(args.source, args.out, args.ema, args.arch, args.trust)
    kind = 'moving average' if conversion.averaged else "model's own weights"
    console = Console(file=sys.stdout, markup=False, emoji=False)  # names of the file are shown as they are
    console.print(conversion.report(f'{args.out}: {conversion.arch}, {kind}'))


if __name__ == '__main__':
    raise SystemExit(main())
