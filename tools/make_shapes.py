"""Generate the shapes data set: COCO-format images and instance masks, the same every time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from _command import command

from adn_mmdet.config import require_writable
from adn_mmdet.datasets import CLASSES, make_shapes


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out_dir', help='an empty or new folder, or one of an earlier set, such as data/shapes')
    parser.add_argument('--num-train', type=int, default=600, help='training images')
    parser.add_argument('--num-val', type=int, default=60, help='validation images')
    parser.add_argument('--image-size', type=int, default=192, help='height and width in pixels')
    parser.add_argument('--seed', type=int, default=0, help='of all that is random in the images')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    require_writable(args.out_dir)
    out_dir = make_shapes(**vars(args))
    print(
        f'{out_dir}: {args.num_train} train and {args.num_val} val images of {args.image_size} x '
        f'{args.image_size} px, seed {args.seed}, classes {", ".join(CLASSES)}'
    )


if __name__ == '__main__':
    raise SystemExit(main())
