"""Write the generated shapes data set to a folder."""

import argparse
import sys
from collections.abc import Sequence

from adn_mmdet.datasets.shapes import CLASSES, make_shapes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0, or 2 if an argument is bad or the folder cannot be written.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help='folder to write to, for example data/shapes')
    parser.add_argument('--num-train', type=int, default=600, help='training images')
    parser.add_argument('--num-val', type=int, default=60, help='validation images')
    parser.add_argument('--image-size', type=int, default=96, help='height and width in pixels')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other images')
    args = parser.parse_args(argv)
    try:
        out_dir = make_shapes(**vars(args))
    except (ValueError, OSError) as error:
        print(f'make_shapes: {error}', file=sys.stderr)
        return 2
    print(
        f'{out_dir}: {args.num_train} train and {args.num_val} val images of {args.image_size} x '
        f'{args.image_size} px, seed {args.seed}, classes {", ".join(CLASSES)}'
    )
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
