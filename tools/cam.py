"""Draw Grad-CAM after each block of a stage, at several depths, in one picture: what the skippable blocks refine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _command import command
from mmengine.config import DictAction

from adn_mmdet.config import choose_codes, load_config, require_output
from adn_mmdet.errors import UserError
from adn_mmdet.files import write_atomically
from adn_mmdet.inference.cam import activation_maps, draw_maps
from adn_mmdet.results.plot import png
from adn_mmdet.skip_config import SkipConfig


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file of a detector or classifier, such as configs/mask_rcnn_r50_adn_1x_coco.py'
    )
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('image', help='image file')
    parser.add_argument('--stage', type=int, default=3, help='1 is the first; default: %(default)s')
    parser.add_argument('--skip', help='depths, such as FFFF,TTTT; default super-net and base-net')
    parser.add_argument(
        '--class', dest='label', type=int, help='number of the class; default what the super-net is most certain of'
    )
    parser.add_argument('--out', type=Path, default=Path('cam.png'), help='default: %(default)s')
    parser.add_argument('--allow-untrained', action='store_true', help='run depths of weights without skip-aware norms')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if args.out.suffix != '.png':
        raise UserError(f'--out should be a .png file, but got {args.out}')
    require_output(args.out)
    cfg = load_config(args.config, args.cfg_options)
    codes = choose_codes(cfg, args.skip)
    if codes is None:
        raise UserError(f'{cfg.model.backbone.type} has no depth to choose: give a config with an any-depth backbone')
    if args.skip is None:
        codes = [SkipConfig.super_net(codes[0].groups), SkipConfig.base_net(codes[0].groups)]
    picture, what, maps = activation_maps(
        cfg, args.checkpoint, args.image, args.stage, codes, args.label, args.allow_untrained
    )
    write_atomically(args.out, png(draw_maps(picture, what, maps)))
    print(f'{args.out}: stage {args.stage}, {", ".join(map(str, codes))}, {what}')


if __name__ == '__main__':
    raise SystemExit(main())
