"""Time the backbone at several depths against stock ResNet, interleaved, and the switch of depths."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch
from _command import command
from mmdet.models import ResNet
from rich.console import Console
from rich.table import Table

from adn_mmdet import AdaptiveDepthResNet, SkipConfig
from adn_mmdet.evaluation.latency import interleaved_medians


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    backbone = parser.add_subparsers(dest='what', required=True).add_parser('backbone', help='the backbone alone')
    backbone.add_argument('--depth', type=int, default=50, help='50 or 101')
    backbone.add_argument('--skip', default='FFFF,TTTT', help='codes to time')
    backbone.add_argument('--shape', type=int, nargs=2, default=(320, 320), metavar=('H', 'W'))
    backbone.add_argument('--batch-size', type=int, default=1)
    backbone.add_argument('--rounds', type=int, default=60, help='timed calls of each')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    codes = SkipConfig.parse_list(args.skip, 4)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    adaptive = AdaptiveDepthResNet(args.depth).to(device).eval()
    stock = ResNet(args.depth).to(device)
    stock.eval()
    images = torch.rand(args.batch_size, 3, *args.shape, device=device)
    functions = {f'stock ResNet-{args.depth}': partial(stock, images)}
    functions |= {str(code): partial(adaptive, images, code) for code in codes}
    with torch.inference_mode():
        seconds = interleaved_medians(functions, args.rounds)

    def switch() -> None:  # microseconds, far below a round of the above: timed by the thousand
        for _ in range(1000):
            adaptive.set_skip('TFTF')

    switches = interleaved_medians({'set_skip': switch}, args.rounds)
    reference = next(iter(seconds.values()))
    height, width = args.shape
    table = Table(title=f'{args.batch_size}×3×{height}×{width}, {device}, {torch.get_num_threads()} threads, '
                  f'median of {args.rounds} interleaved rounds')  # fmt: skip
    for column in ('backbone', 'ms', '/ stock', '/ first code'):
        table.add_column(column, justify='left' if column == 'backbone' else 'right')
    for name, value in seconds.items():
        table.add_row(name, f'{1e3 * value:.1f}', f'{value / reference:.3f}', f'{value / seconds[str(codes[0])]:.3f}')
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(f'set_skip: {1e3 * switches["set_skip"]:.1f} µs')


if __name__ == '__main__':
    raise SystemExit(main())
