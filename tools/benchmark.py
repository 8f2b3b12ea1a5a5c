"""Time a detector, or its backbone, at several depths, or a training step: interleaved in one run, medians."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _command import check_skip, command
from benchmarks.one_pass import (
    APART,
    BACKBONE,
    DETECTOR,
    TOGETHER,
    detect_a_fixed_number,
    initialize,
    one_pass_calls,
    read_batches,
)
from benchmarks.step_time import BASE_NET, SUPER_NET, training_steps
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

from adn_mmdet import AdaptiveDepthResNet, SkipConfig, UserError, load_for_testing
from adn_mmdet.backbones import find_backbone
from adn_mmdet.config import load_config, require_writable
from adn_mmdet.cost.latency import interleaved_medians, require_positive
from adn_mmdet.cost.latency_run import benchmark_latency, print_latency
from adn_mmdet.export.hubconf import resnet
from adn_mmdet.export.sub_net import stage_blocks
from adn_mmdet.files import write_atomically

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
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

    latency = add(time_latency, 'latency', 'a detector at each depth, and its parts', None, 1, 20)
    latency.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    latency.add_argument(
        'checkpoint', nargs='?', help='weights; without, untrained ones, whose detections are not typical'
    )
    latency.add_argument('--skip', help='a code, a comma list of codes, or all; ratios are to the first; None is all')
    latency.add_argument('--device', choices=['cpu', 'cuda'], default=DEVICE)
    latency.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on the CPU')
    latency.add_argument('--channels-last', action='store_true', help='that memory format')
    latency.add_argument('--compile', action='store_true', help="the backbone's stages through torch.compile")
    latency.add_argument('--allow-untrained', action='store_true', help='skipped depths of weights without their norms')
    latency.add_argument('--allow-mismatch', action='store_true', help='weights that are missing or left over')
    latency.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    one_pass = add(time_one_pass, 'one-pass', 'all depths in one pass against one by one', (400, 640), 1, 30)
    one_pass.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    one_pass.add_argument(
        'checkpoint', nargs='?', help='weights; without, untrained ones of one class that detect a fixed number'
    )
    one_pass.add_argument('--skip', default='all', help='a comma list of codes, or all')
    one_pass.add_argument('--images', type=Path, help='a folder of images; without, noise')
    backbone = add(time_backbone, 'backbone', 'the backbone alone, and the switch of depths', (320, 320), 1, 60)
    backbone.add_argument('--depth', type=int, default=50, help='50 or 101')
    backbone.add_argument('--skip', default='FFFF,TTTT', help='codes to time')
    backbone.add_argument(
        '--fused', action='store_true', help='each code as tools/export_sub_net.py --fuse ships it, too'
    )
    train = add(time_training, 'train', 'a training step of ADN and of the nets it replaces', (800, 1280), 2, 20)
    train.add_argument('--config', default='faster_rcnn', help='faster_rcnn, mask_rcnn, retinanet, or an ADN config')
    return parser.parse_args(argv)


def time_latency(args: argparse.Namespace) -> dict[str, Any]:
    """The rows of each depth of a config, printed."""
    check_skip(args)
    names = 'checkpoint skip shape device batch_size rounds amp channels_last allow_untrained allow_mismatch'
    settings = {name: getattr(args, name) for name in names.split()}
    report = benchmark_latency(load_config(args.config, args.cfg_options), compiled=args.compile, **settings)
    print_latency(report)
    return report


def time_backbone(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of stock ResNet and of each code, and the ratios to stock and to the first code."""
    codes = [str(code) for code in SkipConfig.parse_list(args.skip, 4)]
    adaptive = AdaptiveDepthResNet(args.depth).to(DEVICE).eval()
    stock = ResNet(args.depth).to(DEVICE)
    stock.eval()
    images = torch.rand(args.batch_size, 3, *args.shape, device=DEVICE)
    reference = f'stock ResNet-{args.depth}'
    functions = {reference: partial(stock, images)} | {code: partial(adaptive, images, code) for code in codes}
    for code in codes if args.fused else ():
        exported = resnet(args.depth, stage_blocks(adaptive, SkipConfig.parse(code)), fused=True).to(DEVICE)
        exported.eval()
        functions[f'{code}, fused'] = partial(exported, images)
    with torch.inference_mode():
        seconds = interleaved_medians(functions, args.rounds)

    def switch() -> None:  # microseconds, far below a round of the above: timed by the thousand
        for _ in range(1000):
            adaptive.set_skip('TFTF')

    pairs = [(code, other) for other in (reference, codes[0]) for code in codes if code != other]
    pairs += [(f'{code}, fused', code) for code in codes if args.fused]
    ratios = {f'{code} / {other}': seconds[code] / seconds[other] for code, other in pairs}
    seconds['set_skip'] = interleaved_medians({'set_skip': switch}, args.rounds)['set_skip'] / 1000
    return report_ratios(args, seconds, ratios)


def time_one_pass(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all depths one by one and in one pass, backbone and detector, and the ratios."""
    cfg = load_config(args.config)
    batches = read_batches(args.images, tuple(args.shape), args.rounds)
    if not args.checkpoint:
        detect_a_fixed_number(cfg)
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).to(DEVICE).eval()
    codes = SkipConfig.parse_list(args.skip, find_backbone(detector).num_stages)
    if args.checkpoint:
        load_for_testing(detector, args.checkpoint, codes)
    else:
        initialize(detector, batches[:4])
    calls = one_pass_calls(detector, codes, batches)
    found = calls[f'{DETECTOR}, {TOGETHER}']()
    print(f'{found / len(codes):.1f} detections a depth in the first image')
    seconds = interleaved_medians(calls, args.rounds, warmup=1)
    ratios = {
        f'{what}, {TOGETHER} / {APART}': seconds[f'{what}, {TOGETHER}'] / seconds[f'{what}, {APART}']
        for what in (BACKBONE, DETECTOR)
    }
    return report_ratios(args, seconds, ratios)


def time_training(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step of each net, and the ratios of ADN's time and of what it holds for its backward."""
    path = args.config if args.config.endswith('.py') else str(CONFIGS / f'{args.config}_r50_adn_1x_coco.py')
    steps = training_steps(load_config(path), args.shape, args.batch_size, DEVICE)
    seconds = interleaved_medians(steps, args.rounds, warmup=3)
    both, alone = seconds[SUPER_NET] + seconds[BASE_NET], steps[SUPER_NET].peak_saved_bytes()
    adn = [name for name in steps if name not in (SUPER_NET, BASE_NET)]
    ratios = {f'time: {name} / both individual nets': seconds[name] / both for name in adn}
    ratios |= {f'held activations: {name} / {SUPER_NET}': steps[name].peak_saved_bytes() / alone for name in adn}
    return report_ratios(args, seconds, ratios)


def report_ratios(args: argparse.Namespace, seconds: dict[str, float], ratios: dict[str, float]) -> dict[str, Any]:
    """Print a table and give its content, with what it depends on."""
    height, width = args.shape
    title = f'{args.batch_size}×3×{height}×{width}, {DEVICE}, {torch.get_num_threads()} threads, '
    table = Table(title=title + f'medians of {args.rounds} interleaved rounds')
    table.add_column('what')
    table.add_column('ms', justify='right')
    table.add_column('ratio', justify='right')
    for name, value in seconds.items():
        table.add_row(name, f'{1e3 * value:.4g}')
    for name, value in ratios.items():
        table.add_row(name, '', f'{value:.3f}')
    Console(file=sys.stdout).print(table)
    run = {key: value for key, value in vars(args).items() if key not in ('run', 'json')}
    run |= dict(device=DEVICE, threads=torch.get_num_threads(), torch=torch.__version__)
    return dict(run=run, seconds=seconds, ratios=ratios)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    require_positive(rounds=args.rounds, batch_size=args.batch_size, shape=min(args.shape or [1]))
    if args.json:
        if args.json.is_dir():
            raise UserError(f'--json {args.json} is a folder: give a file')
        require_writable(args.json.parent)
    MMLogger.get_instance('benchmark', log_level='WARNING')  # else every initialised weight is a line
    report = args.run(args)
    if args.json:
        write_atomically(args.json, (json.dumps(report, indent=2, default=str) + '\n').encode())


if __name__ == '__main__':
    raise SystemExit(main())
