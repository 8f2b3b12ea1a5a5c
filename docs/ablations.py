"""Trains and tests the rows of docs/ablations.md, and draws its table and its plot.

python docs/ablations.py train --rows 'R50;plain' --seeds 0,1,2   adds to docs/ablations.json what is not there yet
python docs/ablations.py report                                 prints the table, draws docs/ablations.png
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import Runner
from scipy.stats import ttest_ind

import adn_mmdet

HERE = Path(__file__).parent
CONFIG = HERE.parent / 'configs/ablations/faster_rcnn_narrow_adn_bccd.py'
RESULTS, PLOT = HERE / 'ablations.json', HERE / 'ablations.png'
SGD = dict(
    optim_wrapper=dict(
        _delete_=True,
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
        clip_grad=dict(max_norm=10),
    )
)
STD_SPATIAL, PREDICTION = dict(feature='std_spatial'), dict(kd_weight=0.0, prediction_weight=1.0)


def net(width: int = 4, **backbone: Any) -> dict[str, Any]:
    """A change of the config: the stem's channels (64 in ResNet-50), and what else is to be said of the backbone."""
    channels = [4 * width * 2**stage for stage in range(4)]
    return dict(model=dict(backbone=dict(base_channels=width, **backbone), neck=dict(in_channels=channels)))


R50, R50_BASE = dict(type='ResNet'), dict(type='ShallowResNet', stage_blocks=(2, 2, 3, 2))
# By row: what changes in the config, and the hook's settings; None for a net that is trained alone.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    'R50': (net(**R50), None),
    'R50-Base': (net(**R50_BASE), None),
    'none': (net(), dict(kd_weight=0.0)),
    'plain': (net(), {}),
    'std_spatial': (net(), STD_SPATIAL),
    'std_spatial x10': (net(), dict(STD_SPATIAL, kd_weight=10.0)),
    'prediction': (net(), PREDICTION),
    'plain, no truth': (net(), dict(gt_weight=0.0)),
    'std_spatial, no truth': (net(), dict(STD_SPATIAL, gt_weight=0.0)),
    'std_spatial x10, no truth': (net(), dict(STD_SPATIAL, kd_weight=10.0, gt_weight=0.0)),
    'SGD: R50': (net(**R50) | SGD, None),
    'SGD: R50-Base': (net(**R50_BASE) | SGD, None),
    'SGD: none': (SGD, dict(kd_weight=0.0)),
    'SGD: plain, no truth': (SGD, dict(gt_weight=0.0)),
    'SGD: std_spatial x10': (SGD, dict(STD_SPATIAL, kd_weight=10.0)),
    'SGD: std_spatial x10, no truth': (SGD, dict(STD_SPATIAL, kd_weight=10.0, gt_weight=0.0)),
    'width 2: R50': (net(2, **R50), None),
    'width 2: R50-Base': (net(2, **R50_BASE), None),
    'width 2: none': (net(2), dict(kd_weight=0.0)),
    'width 2: plain': (net(2), {}),
    'width 2: std_spatial x10': (net(2), dict(STD_SPATIAL, kd_weight=10.0)),
    'width 16: R50': (net(16, **R50), None),
    'width 16: R50-Base': (net(16, **R50_BASE), None),
}


def train(row: str, seed: int) -> dict[str, Any]:
    """Train one row, and test it at super-net and base-net.

    Returns:
        ``row``, ``seed``, box AP in percent by code (``alone`` for a net that is trained alone), and the mean of
        ``kd.to_task`` over the last 50 iterations.
    """
    changes, settings = ROWS[row]
    cfg = Config.fromfile(str(CONFIG))
    if settings is None:
        del cfg.model.backbone['skip']
        cfg.custom_hooks = []
    else:
        cfg.custom_hooks = [dict(type='SkipAwareDistillationHook', **settings)]
    cfg.merge_from_dict(changes)
    cfg.work_dir = f'work_dirs/ablations/{row}_{seed}'
    cfg.randomness = dict(seed=seed)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_evaluator.type = 'ExactCocoMetric'
    cfg.visualizer.name = cfg.work_dir
    runner = Runner.from_cfg(cfg)
    runner.train()
    ap = {}
    for code in ('alone',) if settings is None else ('FFFF', 'TTTT'):
        if settings is not None:
            adn_mmdet.set_skip(runner.model, code)
        ap[code] = round(100 * runner.test()['coco/bbox_mAP'], 3)
    ratio = runner.message_hub.log_scalars.get('train/kd.to_task')
    return dict(row=row, seed=seed, ap=ap, kd_to_task=ratio and float(ratio.mean(50)))


def by_row(results: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """AP of all seeds, by row and by code."""
    rows: dict[str, dict[str, list[float]]] = {row: {} for row in ROWS if any(r['row'] == row for r in results)}
    for result in results:
        for code, value in result['ap'].items():
            rows[result['row']].setdefault(code, []).append(value)
    return rows


def interval(values: list[float]) -> str:
    """Mean and, of several seeds, their standard deviation."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f} ({len(values)})' if len(values) > 1 else ' (1)')


# What docs/ablations.md compares: box AP of some rows at a code, and of one other row that is trained alone.
WITH_TRUTH = ['none', 'plain', 'std_spatial', 'prediction']
CONTRASTS = [
    (['R50'], 'alone', 'R50-Base'),
    (WITH_TRUTH, 'TTTT', 'R50-Base'),
    (WITH_TRUTH, 'FFFF', 'R50'),
    (['width 2: R50'], 'alone', 'width 2: R50-Base'),
    (['width 2: none', 'width 2: plain'], 'TTTT', 'width 2: R50-Base'),
    (['width 2: none', 'width 2: plain'], 'FFFF', 'width 2: R50'),
]


def print_contrasts(rows: dict[str, dict[str, list[float]]]) -> None:
    """Print both means, and the interval of their difference by Welch's test."""
    for names, code, other in CONTRASTS:
        if not {*names, other} <= rows.keys():
            continue
        first, second = [value for name in names for value in rows[name][code]], rows[other]['alone']
        if min(len(first), len(second)) > 1:
            bounds = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
            middle, half = (bounds.high + bounds.low) / 2, (bounds.high - bounds.low) / 2
            print(
                f'{", ".join(names)} at {code} {interval(first)}, {other} {interval(second)}: '
                f'{middle:.1f} ± {half:.1f} (95 %)'
            )


def report(results: list[dict[str, Any]]) -> None:
    """Print the table in Markdown, and draw every run as a point."""
    print('| row | super-net | base-net | KL / task |\n|---|---:|---:|---:|')
    rows = by_row(results)
    for row, ap in rows.items():
        ratios = [r['kd_to_task'] for r in results if r['row'] == row and r['kd_to_task'] is not None]
        base = row.endswith('R50-Base')
        cells = [ap.get('alone' if not base else '', ap.get('FFFF')), ap.get('alone' if base else '', ap.get('TTTT'))]
        shown = [interval(values) if values else '' for values in cells]
        print(f'| {row} | {shown[0]} | {shown[1]} | {f"{mean(ratios):.1e}" if ratios else ""} |')
    print_contrasts(rows)
    figure = Figure(figsize=(8, 0.36 * len(rows) + 1.2), layout='tight')
    axis = figure.subplots()
    for y, ap in enumerate(rows.values()):
        for code, values in ap.items():
            base = code == 'TTTT' or list(rows)[y].endswith('R50-Base')
            fill = 'white' if base else 'black'
            height = y + (0.12 if base else -0.12)
            axis.plot(values, [height] * len(values), 'o', markerfacecolor=fill, color='black', markersize=5)
            axis.plot([mean(values)], [height], '|', color='black', markersize=14)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set_xlabel('box AP: ● super-net or R50, ○ base-net or R50-Base, | mean')
    axis.grid(axis='x', alpha=0.3)
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['train', 'report'])
    parser.add_argument('--rows', help=f'separated by semicolons, of {"; ".join(ROWS)}; default all')
    parser.add_argument('--seeds', default='0,1,2')
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if args.what == 'train':
        rows = args.rows.split(';') if args.rows else list(ROWS)
        if unknown := set(rows) - ROWS.keys():
            parser.error(f'--rows should be of {"; ".join(ROWS)}, but got {"; ".join(unknown)}')
        for row, seed in itertools.product(rows, map(int, args.seeds.split(','))):
            if not any((result['row'], result['seed']) == (row, seed) for result in results):
                results.append(train(row, seed))
                RESULTS.write_text(json.dumps(results, indent=1) + '\n')
    report(results)


if __name__ == '__main__':
    main()
