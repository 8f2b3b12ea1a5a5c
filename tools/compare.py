"""Put test runs, measured latency and the paper's numbers side by side, and name the depth to ship for a budget."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _command import CHOICES, budget_of, command

from adn_mmdet.config import require_output
from adn_mmdet.results.compare import FILES, PAPER_MODELS, compare, print_comparison, write_comparison

EPILOG = (
    'Writes compare.html (one file to look at), .md, .csv, .json and .png. All runs must be on the same annotation '
    'file, classes and number of images. They may differ in input size: AP and costs are those of their own size.'
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='a work folder of tools/test.py, or its sub_nets.json')
    parser.add_argument(
        '--latency',
        nargs='+',
        default=[],
        metavar='FILE',
        help='of tools/benchmark.py latency --json; belongs to the runs of its config name and weights',
    )
    parser.add_argument(
        '--paper',
        choices=[*PAPER_MODELS, 'none'],
        help='whose numbers of the paper to show; default: each of which a config of its tables was tested on all of '
        "COCO val2017 or ImageNet's validation set",
    )
    parser.add_argument(
        '--metric', choices=[*CHOICES], help='what the choice goes by; default: the first that there is'
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--budget-ms', type=float, metavar='X', help='the most milliseconds, as in the latency files')
    budget.add_argument('--budget-gmacs', type=float, metavar='X', help='the most GMACs an image')
    parser.add_argument('--pictures', help='the --show-dir of tools/test.py: shown in compare.html, beside FFFF')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare'), help='default: %(default)s')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    for name in FILES:
        require_output(args.out / name)
    content = compare(
        args.runs,
        args.latency,
        paper=None if args.paper is None else [name for name in PAPER_MODELS if name == args.paper],
        metric=CHOICES[args.metric] if args.metric else None,
        budget=budget_of(args),
    )
    write_comparison(content, args.out, args.pictures)
    print_comparison(content)
    print(f'{args.out}/compare.html, .md, .csv, .json, .png')


if __name__ == '__main__':
    raise SystemExit(main())
