"""Trains and tests narrow GFL nets on composed scenes, for docs/ablations.md and docs/parts.md.

python tools/benchmarks/fashion_detection.py train --rows 'R50;ADN' --seeds 0,1   adds to docs/fashion_scenes.json
python tools/benchmarks/fashion_detection.py report   prints its table, and differences with intervals
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from adn_mmdet.evaluation import evaluate_sub_nets
from adn_mmdet.results.intervals import unpack

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/ablations/gfl_narrow_adn_fashion_scenes.py'
RESULTS = ROOT / 'docs/fashion_scenes.json'
FOLDER = 'work_dirs/fashion_detection'
STEPS, STEPS_ON, SIZE = 1000, 700, 128
KEPT = ('skip', 'size', 'gmacs', 'bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_resampled')

DEEP: dict[str, Any] = dict(type='ResNet')
BASE: dict[str, Any] = dict(type='ShallowResNet', stage_blocks=(2, 2, 3, 2))


def alone(backbone: dict[str, Any], tower: int = 4) -> dict[str, Any]:
    """The model of a net that is trained alone, with so many convolutions in its towers."""
    return dict(backbone=backbone, bbox_head=dict(stacked_convs=tower))


def with_tower(keep: int, **part: Any) -> dict[str, Any]:
    """The model whose towers can be skipped but for their first ``keep`` convolutions."""
    tower = dict(type='SkippableTower', of='bbox_head', keep=keep, **part)
    return dict(type='AnyDepthDetector', of='GFL', parts=[tower], backbone=dict(skip='FFFF-F'))


PARTS = ['FFFF-F', 'TTTT-T', 'FFFF-T', 'TTTT-F']
# By row: what changes in the model, and the codes that are tested, the first two at all sizes; None: trained alone.
ROWS: dict[str, tuple[dict[str, Any], list[str] | None]] = {
    'R50': (alone(DEEP), None),
    'R50-Base': (alone(BASE), None),
    'ADN': ({}, ['FFFF', 'TTTT', 'TFFF', 'FFFT']),
    'tower 2': (with_tower(2), PARTS),
    'tower 1': (with_tower(1), PARTS),
    'R50-Base, tower of 2': (alone(BASE, 2), None),
    'R50-Base, tower of 1': (alone(BASE, 1), None),
    'tower 2, one set of norms': (with_tower(2, skip_aware_norm=False), PARTS),
}
# Residual blocks that begin as more than identities: the scale of the norm that ends one is 1 at first, not 0.
ROWS |= {
    f'{row}, scale 1': (model | dict(backbone=model.get('backbone', {}) | dict(zero_init_residual=False)), codes)
    for row, (model, codes) in list(ROWS.items())[:3]
}
# The same, trained on from R50 of the same seed; shallow nets and short towers take of it what they have.
CUT = ('R50-Base, tower of 2', 'R50-Base, tower of 1')
ROWS |= {f'on: {row}': ROWS[row] for row in ('R50', 'ADN', 'tower 2', 'tower 1', 'tower 2, one set of norms', *CUT)}


def train(row: str, seed: int, sizes: str) -> dict[str, Any]:
    """Train one row, and test it at its codes and at input sizes.

    Returns:
        ``row``, ``seed``, ``steps`` and ``points``, of each what KEPT names.
    """
    (model, codes), steps = ROWS[row], STEPS_ON if row.startswith('on: ') else STEPS
    cfg = Config.fromfile(str(CONFIG))
    if codes is None:
        del cfg.model.backbone['skip']
        cfg.custom_hooks = []
    cfg.merge_from_dict(dict(model=model))
    cfg.work_dir = f'{FOLDER}/{row}_{seed}'
    cfg.randomness = dict(seed=seed)
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = cfg.default_hooks.checkpoint.interval = steps
    cfg.param_scheduler[1].update(end=steps, T_max=steps - cfg.param_scheduler[0].end)
    cfg.visualizer.name = cfg.work_dir
    cfg.test_evaluator.type = 'ExactCocoMetric'
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    checkpoint = Path(cfg.work_dir, f'iter_{steps}.pth')
    if steps == STEPS_ON:
        cfg.load_from = f'{FOLDER}/R50_{seed}/iter_{STEPS}.pth'
    if not checkpoint.exists():
        runner = Runner.from_cfg(cfg.copy())
        runner.model.to(memory_format=torch.channels_last)  # a narrow network is a sixth faster
        runner.train()
    evaluate_sub_nets(cfg.copy(), checkpoint, skip=','.join(codes) if codes else None, sizes=[SIZE])
    points = evaluate_sub_nets(cfg, checkpoint, skip=','.join(codes[:2]) if codes else None, sizes=sizes)
    kept = [{name: point.get(name) for name in KEPT} for point in points]
    return dict(row=row, seed=seed, steps=steps, points=kept)


# A row at a code, and another row at its code, at the images' own size.
CONTRASTS = [
    ('R50', None, 'R50-Base', None),
    ('ADN', 'FFFF', 'R50', None),
    ('ADN', 'TTTT', 'R50-Base', None),
    ('ADN', 'FFFF', 'ADN', 'TTTT'),
    ('ADN', 'TFFF', 'ADN', 'FFFT'),
    ('on: R50', None, 'R50', None),
    ('on: ADN', 'FFFF', 'on: R50', None),
    ('on: ADN', 'FFFF', 'on: ADN', 'TTTT'),
    ('on: ADN', 'TFFF', 'on: ADN', 'FFFT'),
    *((f'{on}tower {keep}', 'FFFF-F', f'{on}R50', None) for on in ('', 'on: ') for keep in (2, 1)),
    *(
        (f'{on}tower {keep}', 'FFFF-F', f'{on}tower {keep}', code)
        for on in ('', 'on: ')
        for keep in (2, 1)
        for code in PARTS[1:]
    ),
    *(
        (f'{on}tower {keep}', 'TTTT-T', f'{on}R50-Base, tower of {keep}', None)
        for on in ('', 'on: ')
        for keep in (2, 1)
    ),
    *(('on: tower 2', code, 'on: tower 2, one set of norms', code) for code in PARTS),
    ('R50, scale 1', None, 'R50-Base, scale 1', None),
    ('R50, scale 1', None, 'R50', None),
    ('R50-Base, scale 1', None, 'R50-Base', None),
]
# What is skipped, and a net that is not, whose smaller inputs cost as much.
RIVALS = [
    ('ADN', 'TTTT', 'ADN', 'FFFF'),
    ('on: ADN', 'TTTT', 'on: R50', None),
    *((f'on: tower {keep}', 'TTTT-T', 'on: ADN', 'TTTT') for keep in (2, 1)),
    ('R50-Base', None, 'R50', None),
    *(
        (f'{on}tower {keep}', code, f'{on}{other}', other_code)
        for on in ('', 'on: ')
        for keep in (2, 1)
        for code in PARTS[1:]
        for other, other_code in ((f'tower {keep}', 'FFFF-F'), ('R50', None))
    ),
    *((f'{on}R50-Base, tower of {keep}', None, f'{on}R50', None) for on in ('', 'on: ') for keep in (2, 1)),
]
Point = tuple[str, str | None, int]  # row, code and input size


class Found(NamedTuple):
    """What was measured of a point: AP in percent by seed, the same on drawn test sets, and GMACs."""

    gmacs: float
    by_seed: dict[int, float]
    drawn: dict[int, np.ndarray]


def by_point(results: list[dict[str, Any]]) -> dict[Point, Found]:
    """What was measured, by point."""
    points: dict[Point, Found] = {}
    for result in results:
        for point in result['points']:
            found = points.setdefault((result['row'], point['skip'], point['size']), Found(point['gmacs'], {}, {}))
            found.by_seed[result['seed']] = 100 * point['bbox_mAP']
            found.drawn[result['seed']] = 100 * unpack(point['bbox_mAP_resampled'])
    return points


def at_cost(points: dict[Point, Found], row: str, code: str | None, gmacs: float) -> Found | None:
    """A net at the input size at which it costs as much: on the line between the sizes that were tested next to it."""
    nets = [found for point, found in points.items() if point[:2] == (row, code)]
    for small, large in itertools.pairwise(sorted(nets, key=lambda net: net.gmacs)):
        if small.gmacs <= gmacs <= large.gmacs:
            share = (gmacs - small.gmacs) / (large.gmacs - small.gmacs)
            seeds = small.by_seed.keys() & large.by_seed.keys()
            mix = {s: (1 - share) * small.by_seed[s] + share * large.by_seed[s] for s in seeds}
            drawn = {s: (1 - share) * small.drawn[s] + share * large.drawn[s] for s in seeds}
            return Found(gmacs, mix, drawn)
    return None


def difference(ours: Found, theirs: Found) -> str:
    """The mean difference over the seeds that both have, its 95 % interval over the images, and each seed's."""
    seeds = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
    if not seeds:
        return 'no seed in common'
    each = [ours.by_seed[seed] - theirs.by_seed[seed] for seed in seeds]
    low, high = np.percentile(np.mean([ours.drawn[seed] - theirs.drawn[seed] for seed in seeds], 0), [2.5, 97.5])
    return f'{np.mean(each):+.2f} ({low:+.2f} to {high:+.2f}); by seed {", ".join(f"{value:+.2f}" for value in each)}'


def named(row: str, code: str | None) -> str:
    """A net in a sentence."""
    return f'{row} at {code}' if code else row


def report(results: list[dict[str, Any]]) -> None:
    """Print the table in Markdown, and the differences."""
    points = by_point(results)
    print('| row | code | input | MMACs | box AP by seed |\n|---|---|---:|---:|---:|')
    for (row, code, size), found in points.items():
        shown = ', '.join(f'{found.by_seed[seed]:.1f}' for seed in sorted(found.by_seed))
        print(f'| {row} | {code or ""} | {size} | {1000 * found.gmacs:.1f} | {shown} |')
    for row, code, other, other_code in CONTRASTS:
        ours, theirs = points.get((row, code, SIZE)), points.get((other, other_code, SIZE))
        if ours and theirs:
            print(f'{named(row, code)} - {named(other, other_code)}: {difference(ours, theirs)}')
    for row, code, other, other_code in RIVALS:
        ours = points.get((row, code, SIZE))
        theirs = ours and at_cost(points, other, other_code, ours.gmacs)
        if ours and theirs:
            rival = f'{named(other, other_code)} on smaller images'
            print(f'at {1000 * ours.gmacs:.1f} MMACs, {named(row, code)} - {rival}: {difference(ours, theirs)}')


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['train', 'report'])
    parser.add_argument('--rows', help=f'separated by semicolons, of {"; ".join(ROWS)}; default all')
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--sizes', default='128,112,96,80', help='short sides that are tested')
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    rows, seeds = args.rows.split(';') if args.rows else list(ROWS), list(map(int, args.seeds.split(',')))
    if unknown := set(rows) - ROWS.keys():
        parser.error(f'--rows should be of {"; ".join(ROWS)}, but got {"; ".join(unknown)}')
    results = json.loads(args.results.read_text()) if args.results.exists() else []
    if args.what == 'train':
        for seed, row in itertools.product(seeds, rows):
            if not any((r['row'], r['seed']) == (row, seed) for r in results):
                results.append(train(row, seed, args.sizes))
                args.results.write_text(json.dumps(results, indent=1) + '\n')
    report(results)


if __name__ == '__main__':
    main()
