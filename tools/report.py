"""Write the report of a test run: its table, AP against cost, and predictions side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _command import CHOICES, budget_of, command

from adn_mmdet.config import require_output
from adn_mmdet.results.report import FILES, write_report


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='the work folder of tools/test.py, with sub_nets.json in it')
    parser.add_argument('--pictures', help='the --show-dir of tools/test.py')
    parser.add_argument('--latency', nargs='+', default=[], metavar='FILE', help='of tools/benchmark.py latency --json')
    parser.add_argument(
        '--metric', choices=[*CHOICES], help='what the choice goes by; default: the first that there is'
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        '--budget-ms',
        type=float,
        metavar='X',
        help='the most milliseconds; default: halfway from the least to FFFF',
    )
    budget.add_argument('--budget-gmacs', type=float, metavar='X', help='the most GMACs an image')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    for name in FILES if Path(args.work_dir).is_dir() else ():
        require_output(Path(args.work_dir) / name)
    metric = CHOICES[args.metric] if args.metric else None
    print(write_report(args.work_dir, args.pictures, latency=args.latency, metric=metric, budget=budget_of(args)))


if __name__ == '__main__':
    raise SystemExit(main())
