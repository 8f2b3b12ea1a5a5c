"""Write a whole detector with all its depths as one ONNX file: no mmdet and no torch where it runs."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _command import command
from mmengine.config import Config, DictAction
from mmengine.logging import print_log

from adn_mmdet import UserError
from adn_mmdet.config import load_config, require_output
from adn_mmdet.evaluation.smaller import compare_ap
from adn_mmdet.export.any_depth import export_any_depth
from adn_mmdet.export.smaller import DYNAMIC, make_smaller
from adn_mmdet.inference import list_inputs


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('checkpoint', help='checkpoint file; it is left as it is')
    parser.add_argument('out', help='the ONNX file to write; any_depth_runtime.py, which runs it, is put beside it')
    parser.add_argument('--sub-nets', help='sub_nets.json of tools/test.py for this checkpoint, to choose depths by')
    parser.add_argument(
        '--allow-untrained', action='store_true', help='export skipped depths of weights without skip-aware norms'
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        '--float16', action='store_true', help='networks in float16; AP is printed beside that in float32'
    )
    kind.add_argument(
        '--int8',
        metavar='IMAGES',
        help='networks in int8, calibrated on a folder of images, or `dynamic`; AP is printed beside that in float32',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    if args.float16 or args.int8:
        paths = export_smaller(cfg, args)
    else:
        paths = export_any_depth(cfg, args.checkpoint, args.out, args.sub_nets, args.allow_untrained)
    for path in paths:
        print(path)


def export_smaller(cfg: Config, args: argparse.Namespace) -> list[Path]:
    """Export in float32 first, which the other file is made from and compared with."""
    require_output(args.out)
    images = args.int8
    if images not in (None, DYNAMIC):
        images = [str(path) for path in list_inputs(images)]
    with tempfile.TemporaryDirectory(dir=Path(args.out).parent) as folder:
        exact = Path(folder) / 'float32.onnx'
        files = export_any_depth(cfg, args.checkpoint, exact, args.sub_nets, args.allow_untrained)
        try:
            written = make_smaller(exact, args.out, images)
        except OSError as error:
            kept = Path(args.out).with_name(f'{Path(args.out).stem}_float32.onnx')
            for path, place in zip(files, (kept, kept.with_name(files[1].name)), strict=True):
                path.replace(place)  # which takes no space
            raise UserError(
                f'cannot write {error.filename} ({error.strerror}): make space; the file in float32 is kept as {kept}'
            ) from error
        try:
            compare_ap(cfg, exact, args.out)
        except UserError as error:  # such as no test set
            print_log(f'the AP of {args.out} is not known: {error}', 'current', logging.WARNING)
    return written


if __name__ == '__main__':
    raise SystemExit(main())
