"""Detect on images or a video, at a chosen operating point or the best one for a time budget; draw what was found."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from _command import command
from mmengine.config import DictAction

from adn_mmdet import UserError
from adn_mmdet.config import load_config
from adn_mmdet.inference import AnyDepthInferencer, list_inputs
from adn_mmdet.inference.outputs import output_names, require_outputs


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('input', help='an image, its URL, a folder of images, or a video')
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--skip', help="the depth, one code such as TTFF; default the config's")
    parser.add_argument('--point', help='the operating point, such as TTFF@640/300: depth, input size, proposals')
    parser.add_argument(
        '--budget-ms', type=float, help='run the best point that takes no longer, on this device, which is timed once'
    )
    parser.add_argument(
        '--sub-nets', help='sub_nets.json of tools/test.py, or its folder: the AP that budgets go by, and their points'
    )
    parser.add_argument(
        '--images', help="a folder of images to time points on; default the config's test set, noise where it is absent"
    )
    parser.add_argument('--out', default='outputs', help='folder for annotated images or video; default outputs')
    parser.add_argument('--device', help='such as cuda:0 or cpu; default a GPU if there is one')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score of what is drawn; default 0.3')
    parser.add_argument('--allow-untrained', action='store_true', help='run depths of weights without skip-aware norms')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr should be from 0 to 1, but got {args.score_thr}')
    images = list_inputs(args.input)
    require_outputs(Path(args.out), output_names(images))
    inferencer = AnyDepthInferencer(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        args.device,
        sub_nets=args.sub_nets,
        images=args.images,
        allow_untrained=args.allow_untrained,
    )
    point = inferencer.choose(args.skip, args.budget_ms, point=args.point)
    inferencer(images[:1], point=point)  # a device's first call is slow
    times: list[float] = []
    inferencer(
        images,
        point=point,
        out_dir=args.out,
        pred_score_thr=args.score_thr,
        on_prediction=lambda prediction: times.append(prediction['ms']),
    )
    name = str(point) or 'no depth to choose'
    print(f'{Path(args.out) / "vis"}: {len(times)} images, {name}, median {median(times):.1f} ms')


if __name__ == '__main__':
    raise SystemExit(main())
