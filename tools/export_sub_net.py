"""Write a plain mmdet config and checkpoint of one depth: they run where this package is not installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from _command import check_skip, command
from mmengine.config import DictAction

from adn_mmdet.config import load_config
from adn_mmdet.export.sub_net import export_sub_net


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('checkpoint', help='checkpoint file; it is left as it is')
    parser.add_argument('out', help='a new or empty folder')
    parser.add_argument('--skip', required=True, help='the depth, one code such as TTFT')
    parser.add_argument('--norms', help='statistics of this depth, from tools/recalibrate.py, to be baked in')
    parser.add_argument('--fuse', action='store_true', help="fold the backbone's batch norms into its convolutions")
    parser.add_argument('--onnx', action='store_true', help='also write backbone and neck as ONNX')
    parser.add_argument('--torch-export', action='store_true', help='also write backbone and neck by torch.export')
    parser.add_argument(
        '--allow-untrained', action='store_true', help='export a skipped depth of weights without skip-aware norms'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    check_skip(args)
    cfg = load_config(args.config, args.cfg_options)
    paths = export_sub_net(
        cfg,
        args.checkpoint,
        args.skip,
        args.out,
        norms=args.norms,
        fuse=args.fuse,
        onnx=args.onnx,
        torch_export=args.torch_export,
        allow_untrained=args.allow_untrained,
    )
    for path in paths:
        print(path)


if __name__ == '__main__':
    raise SystemExit(main())
