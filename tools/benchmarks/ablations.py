"""Trains and tests the rows of docs/ablations.md, and draws its table and its plot.

python tools/benchmarks/ablations.py train --rows 'R50;plain' --seeds 0,1,2   adds to docs/ablations.json what it lacks
python tools/benchmarks/ablations.py report   prints the table, draws docs/ablations.png
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Collection
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import Runner
from scipy.stats import ttest_ind, ttest_rel

import adn_mmdet

ROOT = Path(__file__).parents[2]
CONFIGS, DOCS = ROOT / 'configs/ablations', ROOT / 'docs'
RESULTS, PLOT = DOCS / 'ablations.json', DOCS / 'ablations.png'
SGD = dict(
    optim_wrapper=dict(
        _delete_=True,
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
        clip_grad=dict(max_norm=10),
    )
)


def net(width: int, **backbone: Any) -> dict[str, Any]:
    """A change of the config: the stem's channels (64 in ResNet-50), and what else is to be said of the backbone."""
    channels = [4 * width * 2**stage for stage in range(4)]
    return dict(model=dict(backbone=dict(base_channels=width, **backbone), neck=dict(in_channels=channels)))


ALONE: dict[str, dict[str, Any]] = {
    'R50': dict(type='ResNet'),
    'R50-Base': dict(type='ShallowResNet', stage_blocks=(2, 2, 3, 2)),
}
# The hook's settings, by form of distillation. "Nothing" stands for "none" where there is no truth either, which the
# hook refuses: too little for AdamW, whose eps is 1e-8, to follow; still less makes denormals, which are slow.
WITH_TRUTH: dict[str, dict[str, Any]] = {
    'none': dict(kd_weight=0.0),
    'plain': {},
    'std_spatial': dict(feature='std_spatial'),
    'std_spatial x10': dict(feature='std_spatial', kd_weight=10.0),
    'prediction': dict(kd_weight=0.0, prediction_weight=1.0),
    'nothing': dict(kd_weight=1e-10),
}
FORMS = WITH_TRUTH | {f'{form}, no truth': dict(settings, gt_weight=0.0) for form, settings in WITH_TRUTH.items()}
Row = tuple[dict[str, Any], dict[str, Any] | None]


def rows_of(setting: str, width: int, names: str, **changes: Any) -> dict[str, Row]:
    """Rows of one setting, each named by a net that is trained alone or a form of distillation."""
    return {
        setting + name: (net(width, **ALONE.get(name, {})) | changes, None if name in ALONE else FORMS[name])
        for name in names.split(';')
    }


# By row: what changes in the config, and the hook's settings; None for a net that is trained alone.
ROWS = {
    **rows_of('', 4, 'R50;R50-Base;none;plain;std_spatial;std_spatial x10;prediction'),
    **rows_of('', 4, 'plain, no truth;std_spatial, no truth;std_spatial x10, no truth'),
    **rows_of('SGD: ', 4, 'R50;R50-Base;none;plain, no truth', **SGD),
    **rows_of('SGD: ', 4, 'std_spatial x10;std_spatial x10, no truth', **SGD),
    **rows_of('width 2: ', 2, 'R50;R50-Base;none;plain;std_spatial x10;nothing, no truth;plain, no truth'),
    **rows_of('width 2: ', 2, 'std_spatial x10, no truth;prediction, no truth'),
    **rows_of('width 2, SGD: ', 2, 'nothing, no truth;plain, no truth', **SGD),
    **rows_of('width 2, SGD: ', 2, 'std_spatial x10, no truth;prediction, no truth', **SGD),
    **rows_of('width 16: ', 16, 'R50;R50-Base'),
    **rows_of('P3: ', 2, 'R50;R50-Base'),
}
# The config of a setting, where it has its own.
OWN_CONFIGS = {'P3': 'p3_adn_bccd'}


def test_on_both_sets(cfg: Config) -> None:
    """Let ``cfg`` test on BCCD's validation and test images together, 159 in place of 87."""
    both: dict[str, list[dict[str, Any]]] = dict(images=[], annotations=[])
    for number, split in enumerate(('val', 'test')):
        found = json.loads(Path(cfg.data_root, f'annotations/instances_{split}.json').read_text())
        both['categories'] = found['categories']
        for image in found['images']:
            image.update(id=2 * image['id'] + number, file_name=f'{split}/{image["file_name"]}')
        for box in found['annotations']:
            box.update(id=2 * box['id'] + number, image_id=2 * box['image_id'] + number)
        both['images'] += found['images']
        both['annotations'] += found['annotations']
    path = Path(cfg.work_dir, 'val_test.json').absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(both))
    cfg.test_dataloader.dataset.update(ann_file=str(path), data_prefix=dict(img=''))
    cfg.test_evaluator.ann_file = str(path)


def train(row: str, seed: int) -> dict[str, Any]:
    """Train one row, and test it at super-net and base-net.

    Returns:
        ``row``, ``seed``, box AP in percent by code (``alone`` for a net that is trained alone), and the mean of
        ``kd.to_task`` over the last 50 iterations; ``classes``: by code the AP of every class, where the config is
        ``classwise``.
    """
    changes, settings = ROWS[row]
    setting = row.partition(':')[0]
    cfg = Config.fromfile(str(CONFIGS / f'faster_rcnn_narrow_{OWN_CONFIGS.get(setting, "adn_bccd")}.py'))
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
    if setting == 'P3':
        test_on_both_sets(cfg)
    cfg.visualizer.name = cfg.work_dir
    runner = Runner.from_cfg(cfg)
    runner.train()
    ap: dict[str, float] = {}
    classes: dict[str, dict[str, float]] = {}
    for code in ('alone',) if settings is None else ('FFFF', 'TTTT'):
        if settings is not None:
            adn_mmdet.set_skip(runner.model, code)
        metrics = {name.removeprefix('coco/'): round(100 * value, 3) for name, value in runner.test().items()}
        ap[code] = metrics['bbox_mAP']
        by_class = {name.removesuffix('_precision'): metrics[name] for name in metrics if name.endswith('_precision')}
        if by_class:
            classes[code] = by_class
    ratio = runner.message_hub.log_scalars.get('train/kd.to_task')
    return dict(row=row, seed=seed, ap=ap, kd_to_task=ratio and float(ratio.mean(50)), classes=classes)


def by_row(results: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    """Box AP by row, by code and by seed."""
    rows: dict[str, dict[str, dict[int, float]]] = {row: {} for row in ROWS if any(r['row'] == row for r in results)}
    for result in results:
        for code, value in result['ap'].items():
            rows[result['row']].setdefault(code, {})[result['seed']] = value
    return rows


def interval(values: Collection[float]) -> str:
    """Mean and, of several seeds, their standard deviation."""
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f} ({len(values)})' if len(values) > 1 else ' (1)')


JOINT = ['none', 'plain', 'std_spatial', 'prediction']
NO_TRUTH = [f'width 2: {form}, no truth' for form in ('nothing', 'plain', 'std_spatial x10', 'prediction')]
# What docs/ablations.md compares: box AP of some rows at a code, their mean by seed, and of one that is trained alone.
CONTRASTS = [
    (['R50'], 'alone', 'R50-Base'),
    (JOINT, 'TTTT', 'R50-Base'),
    (JOINT, 'FFFF', 'R50'),
    (['width 2: none', 'width 2: plain'], 'TTTT', 'width 2: R50-Base'),
    (['width 2: none', 'width 2: plain'], 'FFFF', 'width 2: R50'),
]
# The same, seed by seed: a row at a code and another row at its code.
PAIRS = [
    ('P3: R50', 'alone', 'P3: R50-Base', 'alone'),
    ('width 2: R50', 'alone', 'width 2: R50-Base', 'alone'),
    *((row, 'TTTT', JOINT[0], 'TTTT') for row in JOINT[1:]),
    *((row, 'TTTT', JOINT[1], 'TTTT') for row in JOINT[2:]),
    ('width 2: plain', 'TTTT', 'width 2: none', 'TTTT'),
    *((row, 'TTTT', row, 'FFFF') for row in ('width 2: none', 'width 2: plain', *NO_TRUTH)),
    *((row, 'TTTT', NO_TRUTH[0], 'TTTT') for row in NO_TRUTH[1:]),
    *((row, 'TTTT', NO_TRUTH[1], 'TTTT') for row in NO_TRUTH[2:]),
]


def difference(test: Any) -> str:
    """The middle of a t-test's interval, and its half."""
    bounds = test.confidence_interval(0.95)
    return f'{(bounds.high + bounds.low) / 2:.1f} ± {(bounds.high - bounds.low) / 2:.1f} (95 %)'


def print_contrasts(rows: dict[str, dict[str, dict[int, float]]]) -> None:
    """Print means, and the interval of their difference, by Welch's test or, seed by seed, by the paired one."""
    for names, code, other in CONTRASTS:
        if not {*names, other} <= rows.keys():
            continue
        shared = set.intersection(*({*rows[name][code]} for name in names))
        first = [mean(rows[name][code][seed] for name in names) for seed in sorted(shared)]
        second = rows[other]['alone'].values()
        if min(len(first), len(second)) > 1:
            found = difference(ttest_ind(first, list(second), equal_var=False))
            print(f'{", ".join(names)} at {code} {interval(first)}, {other} {interval(second)}: {found}')
    for row, code, other, other_code in PAIRS:
        ours, theirs = rows.get(row, {}).get(code, {}), rows.get(other, {}).get(other_code, {})
        seeds = sorted(ours.keys() & theirs.keys())
        if len(seeds) > 1:
            found = difference(ttest_rel([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]))
            print(f'{row} at {code} - {other} at {other_code}, {len(seeds)} pairs: {found}')


def print_classes(results: list[dict[str, Any]]) -> None:
    """Print the AP of every class, where a row has it."""
    found: dict[str, list[float]] = {}
    for result in results:
        for code, classes in result.get('classes', {}).items():
            for name, value in classes.items():
                found.setdefault(f'{result["row"]} at {code}, {name}', []).append(value)
    for title, values in found.items():
        print(f'{title}: {interval(values)}')


def report(results: list[dict[str, Any]]) -> None:
    """Print the table in Markdown, and draw every run as a point."""
    print('| row | super-net | base-net | KL / task |\n|---|---:|---:|---:|')
    rows = by_row(results)
    for row, ap in rows.items():
        ratios = [r['kd_to_task'] for r in results if r['row'] == row and r['kd_to_task'] is not None]
        codes = ('', 'alone') if row.endswith('R50-Base') else ('alone', '') if 'alone' in ap else ('FFFF', 'TTTT')
        shown = [interval(ap[code].values()) if code in ap else '' for code in codes]
        print(f'| {row} | {shown[0]} | {shown[1]} | {f"{mean(ratios):.1e}" if ratios else ""} |')
    print_contrasts(rows)
    print_classes(results)
    figure = Figure(figsize=(8, 0.36 * len(rows) + 1.2), layout='tight')
    axis = figure.subplots()
    for y, ap in enumerate(rows.values()):
        for code, by_seed in ap.items():
            values = list(by_seed.values())
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
    parser.add_argument('--results', type=Path, default=RESULTS, help='two processes at once need a file each')
    args = parser.parse_args()
    results = json.loads(args.results.read_text()) if args.results.exists() else []
    if args.what == 'train':
        rows = args.rows.split(';') if args.rows else list(ROWS)
        if unknown := set(rows) - ROWS.keys():
            parser.error(f'--rows should be of {"; ".join(ROWS)}, but got {"; ".join(unknown)}')
        for row, seed in itertools.product(rows, map(int, args.seeds.split(','))):
            if not any((result['row'], result['seed']) == (row, seed) for result in results):
                results.append(train(row, seed))
                args.results.write_text(json.dumps(results, indent=1) + '\n')
    report(results)


if __name__ == '__main__':
    main()
