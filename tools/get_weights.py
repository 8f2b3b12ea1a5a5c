"""Download the authors' ADN weights of ImageNet and convert them, for a config to start from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from _command import command

from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.checkpoints.download import FOLDER, SOURCES, get_weights, is_there, weights_file


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', choices=SOURCES, help='those without vd come from Google Drive, by the package gdown')
    parser.add_argument('--out', default=FOLDER, help=f'folder, default {FOLDER}/, where the configs look')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if is_there(args.name, args.out):
        print(f'{weights_file(args.name, args.out)} is there already: nothing done')
        return
    path = get_weights(args.name, args.out)
    meta = load_from_local(path)['meta']
    print(f'wrote {path}: {meta["arch"]}, from {meta["source"]} of sha256 {meta["source_sha256"]}')


if __name__ == '__main__':
    raise SystemExit(main())
