"""Time a detector at operating points, its backbone at depths, or a training step: interleaved, medians."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _command import add_point_options, check_skip, command
from benchmarks.backbone import time_backbone
from benchmarks.one_pass import time_one_pass
from benchmarks.ratios import DEVICE, report_ratios
from benchmarks.step_time import time_training
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from adn_mmdet.config import load_config, require_output
from adn_mmdet.cost.latency_file import benchmark_latency, print_latency
from adn_mmdet.cost.timing import require_counts
from adn_mmdet.export.artifact import is_artifact, use_artifact
from adn_mmdet.files import write_json

CONFIGS = Path(__file__).parents[1] / 'configs'


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    def add(run: Any, name: str, text: str, shape: tuple[int, int] | None, batch_size: int, rounds: int) -> Any:
        sub = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(run=run)
        sub.add_argument('--shape', type=int, nargs=2, default=shape, metavar=('H', 'W'), help='of the images')
        sub.add_argument('--batch-size', type=int, default=batch_size, help='images a call')
        sub.add_argument('--rounds', type=int, default=rounds, help='timed calls of each')
        sub.add_argument('--json', type=Path, help='write the result here as well')
        return sub

    latency = add(run_latency, 'latency', 'a detector at operating points, end to end, and its parts', None, 1, 20)
    latency.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    latency.add_argument(
        'checkpoint',
        nargs='?',
        help='weights, or an exported .onnx; without, untrained ones, whose detections are not typical',
    )
    add_point_options(latency, 'time', 'all')
    latency.add_argument('--images', help='a folder; without, the test set of the config, and noise where it is absent')
    latency.add_argument('--device', choices=['cpu', 'cuda'], default=DEVICE)
    latency.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on the CPU')
    latency.add_argument('--channels-last', action='store_true', help='that memory format')
    latency.add_argument(
        '--compile', dest='compiled', action='store_true', help='stages of the backbone through torch.compile'
    )
    latency.add_argument('--allow-untrained', action='store_true', help='skipped depths of weights without their norms')
    latency.add_argument('--allow-mismatch', action='store_true', help='weights that are missing or left over')
    latency.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    one_pass = add(run_one_pass, 'one-pass', 'all points in one pass against one by one', (400, 640), 1, 30)
    one_pass.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    one_pass.add_argument(
        'checkpoint', nargs='?', help='weights; without, untrained ones of one class that detect a fixed number'
    )
    one_pass.add_argument('--skip', default='all', help='a comma list of codes, or all')
    one_pass.add_argument('--sizes', help='short sides of the input in pixels, such as 400,320,240')
    one_pass.add_argument('--proposals', help='numbers of region proposals, such as 1000,300,100')
    one_pass.add_argument('--images', help='a folder of images; without, noise')
    backbone = add(run_backbone, 'backbone', 'the backbone alone, and the switch of depths', (320, 320), 1, 60)
    backbone.add_argument('--depth', type=int, default=50, help='50 or 101')
    backbone.add_argument('--skip', default='FFFF,TTTT', help='codes to time')
    backbone.add_argument(
        '--fused', action='store_true', help='each code as tools/export_sub_net.py --fuse ships it, too'
    )
    train = add(run_training, 'train', 'a training step of ADN and of the nets it replaces', (800, 1280), 2, 20)
    train.add_argument('--config', default='faster_rcnn', help='faster_rcnn, mask_rcnn, retinanet, or an ADN config')
    return parser.parse_args(argv)


def run_latency(config: str, cfg_options: dict[str, Any] | None, **settings: Any) -> dict[str, Any]:
    check_skip(argparse.Namespace(skip=settings['skip'], cfg_options=cfg_options))
    cfg = load_config(config, cfg_options)
    if is_artifact(settings['checkpoint']):
        use_artifact(cfg, settings.pop('checkpoint'), cfg_options=cfg_options, **settings)
    report = benchmark_latency(cfg, **settings)
    print_latency(report)
    return report


def run_one_pass(config: str, **settings: Any) -> dict[str, Any]:
    return report_ratios(dict(settings, config=config), time_one_pass(load_config(config), **settings))


def run_backbone(**settings: Any) -> dict[str, Any]:
    return report_ratios(settings, time_backbone(**settings))


def run_training(config: str, **settings: Any) -> dict[str, Any]:
    path = config if config.endswith('.py') else str(CONFIGS / f'{config}_r50_adn_1x_coco.py')
    return report_ratios(dict(settings, config=config), time_training(load_config(path), **settings))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    require_counts(rounds=args.rounds, batch_size=args.batch_size, shape=min(args.shape or [1]))
    if args.json:
        require_output(args.json)
    MMLogger.get_instance('benchmark', log_level='WARNING')  # else every initialised weight is a line
    report = args.run(**{name: value for name, value in vars(args).items() if name not in ('run', 'json')})
    if args.json:
        write_json(args.json, report)


if __name__ == '__main__':
    raise SystemExit(main())
