"""Detect on images, a video or a webcam, at an operating point or within a time budget; draw what was found."""

from __future__ import annotations

import argparse
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from _command import command
from mmengine.config import DictAction

from adn_mmdet import UserError
from adn_mmdet.config import load_config
from adn_mmdet.inference import AnyDepthInferencer, list_inputs
from adn_mmdet.inference.annotations import FORMATS
from adn_mmdet.inference.outputs import output_names, require_outputs
from adn_mmdet.inference.stream import Stream


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('input', help='an image, its URL, a folder of images, a video, a webcam (0), or rtsp://…')
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--skip', help="the depth, one code such as TTFF; default the config's")
    parser.add_argument('--point', help='the operating point, such as TTFF@640/300: depth, input size, proposals')
    parser.add_argument(
        '--budget-ms', type=float, help='run the best point that takes no longer, on this device, which is timed once'
    )
    parser.add_argument('--budget-fps', type=float, help='the same, as frames a second: 1000 / that many ms')
    parser.add_argument(
        '--hold', action='store_true', help='choose the point frame by frame, so that the budget holds under any load'
    )
    parser.add_argument('--log', help='with --hold: a CSV file of what ran, frame,point,ms')
    parser.add_argument(
        '--sub-nets', help='sub_nets.json of tools/test.py, or its folder: the AP that budgets go by, and their points'
    )
    parser.add_argument(
        '--images', help="a folder of images to time points on; default the config's test set, noise where it is absent"
    )
    parser.add_argument('--out', default='outputs', help='folder for annotated images or video; default outputs')
    parser.add_argument(
        '--format', choices=FORMATS, help='write what is found as well: annotations.json (coco), or labels/*.txt (yolo)'
    )
    parser.add_argument('--device', help='such as cuda:0 or cpu; default a GPU if there is one')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='least score of what is drawn or written; default 0.3'
    )
    parser.add_argument('--allow-untrained', action='store_true', help='run depths of weights without skip-aware norms')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


def budget_in_ms(budget_ms: float | None, budget_fps: float | None) -> float | None:
    """The budget in milliseconds that the flags name.

    Raises:
        UserError: both do, or frames a second are no positive number.
    """
    if budget_fps is None:
        return budget_ms
    if budget_ms is not None:
        raise UserError(f'--budget-ms {budget_ms:g} and --budget-fps {budget_fps:g} were both given: give one of them')
    if not 0 < budget_fps < math.inf:
        raise UserError(f'--budget-fps should be a positive number of frames a second, but got {budget_fps}')
    return 1e3 / budget_fps


def describe_held(predictions: Iterable[dict[str, Any]], budget_ms: float) -> str:
    """Run what is held frame by frame, and say in one line what ran."""
    times, points = array('f'), Counter[str]()
    for prediction in predictions:
        times.append(prediction['frame_ms'])
        points[prediction['point']] += 1
    if not times:
        return '0 images'
    shares = ', '.join(f'{point} {number / len(times):.0%}' for point, number in points.most_common(3))
    middle, high = np.quantile(times, [0.5, 0.95])
    return (
        f'{len(times)} images, {shares}{", …" if len(points) > 3 else ""}; median {middle:.1f} ms, 95 % within '
        f'{high:.1f} ms, {np.mean(np.array(times) <= budget_ms):.0%} within {budget_ms:.4g} ms'
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr should be from 0 to 1, but got {args.score_thr}')
    budget_ms = budget_in_ms(args.budget_ms, args.budget_fps)
    images = list_inputs(args.input)
    out, kind = Path(args.out), FORMATS.get(args.format)
    require_outputs(out, output_names(images) + (kind.names(images) if kind else []))
    inferencer = AnyDepthInferencer(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        args.device,
        sub_nets=args.sub_nets,
        images=args.images,
        allow_untrained=args.allow_untrained,
    )
    asked: dict[str, Any] = dict(skip=args.skip, point=args.point)
    options: dict[str, Any] = dict(out_dir=args.out, pred_score_thr=args.score_thr)
    with kind(out, images, inferencer.classes, args.score_thr) if kind else nullcontext() as annotations:
        options |= dict(annotations=annotations)
        if args.hold or args.log:
            options |= dict(asked, hold=args.hold, log=args.log, budget_ms=budget_ms)
            text = describe_held(inferencer(images, **options), budget_ms or math.inf)  # without one it refuses
        else:
            point, times = inferencer.choose(**asked, budget_ms=budget_ms), array('f')
            if not isinstance(images, Stream):
                inferencer(images[:1], point=point)  # a device's first call is slow
            options |= dict(point=point, on_prediction=lambda prediction: times.append(prediction['ms']))
            inferencer(images, **options)
            text = f'{len(times)} images, {point or "no depth to choose"}, median {np.median(times):.1f} ms'
    print(f'{out / "vis"}: {text}')


if __name__ == '__main__':
    raise SystemExit(main())
