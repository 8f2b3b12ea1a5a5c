"""Write a whole detector with all its depths as one ONNX file: no mmdet and no torch where it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from _command import command
from mmengine.config import DictAction

from adn_mmdet.config import load_config
from adn_mmdet.export.any_depth import export_any_depth


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('checkpoint', help='checkpoint file; it is left as it is')
    parser.add_argument('out', help='the ONNX file to write; any_depth_runtime.py, which runs it, is put beside it')
    parser.add_argument('--sub-nets', help='sub_nets.json of tools/test.py for this checkpoint, to choose depths by')
    parser.add_argument(
        '--allow-untrained', action='store_true', help='export skipped depths of weights without skip-aware norms'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    paths = export_any_depth(cfg, args.checkpoint, args.out, args.sub_nets, args.allow_untrained)
    for path in paths:
        print(path)


if __name__ == '__main__':
    raise SystemExit(main())
