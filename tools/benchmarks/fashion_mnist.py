"""Trains and tests the rows of docs/ablations.md on Fashion-MNIST, and prints its table and intervals.

python tools/benchmarks/fashion_mnist.py train --rows 'R50;R50-Base;both' --seeds 0,1,2   adds what is missing
python tools/benchmarks/fashion_mnist.py gradients --rows both   of the rows' last checkpoints
python tools/benchmarks/fashion_mnist.py report   prints tables and intervals, draws docs/fashion_mnist.png

All images fit in memory, resized as the configs of configs/classification/ do; what those do to an image (a shift by up
to 2 pixels, a flip) is done to a batch at once, since a narrow network takes less time than a pipeline of images.
"""

from __future__ import annotations

import argparse
import base64
import copy
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from scipy import stats
from torch import Tensor, nn

from adn_mmdet import SkipConfig, set_skip
from adn_mmdet.cost.macs import count_costs
from adn_mmdet.distillation import DistillationSettings, SelfDistillation
from adn_mmdet.results.plot import plot_accuracy_against_cost

ROOT = Path(__file__).parents[2]
CONFIGS, DOCS = ROOT / 'configs/classification', ROOT / 'docs'
RESULTS, PLOT, CHECKPOINTS = DOCS / 'fashion_mnist.json', DOCS / 'fashion_mnist.png', Path('work_dirs/fashion_mnist')
STEPS, BATCH, LEARNING_RATE, WARM_UP = 700, 128, 2e-3, 0.2  # the share of steps over which the rate rises
RECALIBRATION = 50  # batches
ALONE = 'alone'  # in place of a skip code
ENDS = ('FFFF', 'TTTT')

SHARED_NORMS = dict(model=dict(backbone=dict(skip_aware_norm=False)))
BOTH: dict[str, Any] = dict(gt_weight=0.0, prediction_weight=1.0)  # Algorithm 1 as printed
LABELS: dict[str, Any] = dict(kd_weight=0.0)  # no distillation: both nets have labels
LOGITS: dict[str, Any] = dict(BOTH, kd_weight=0.0)
# By row: which config, what changes in it, and the distillation's settings; None for a net that is trained alone.
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    'R50': ('resnet50_narrow', {}, None),
    'R50-Base': ('resnet50_narrow_base', {}, None),
    'both': ('resnet50_narrow_adn', {}, BOTH),
    'norms': ('resnet50_narrow_adn', {}, LABELS),
    'distillation': ('resnet50_narrow_adn', SHARED_NORMS, BOTH),
    'neither': ('resnet50_narrow_adn', SHARED_NORMS, LABELS),
    'both, labels': ('resnet50_narrow_adn', {}, dict(prediction_weight=1.0)),
    'both, logits only': ('resnet50_narrow_adn', {}, LOGITS),
    'both, warm-up': ('resnet50_narrow_adn', {}, dict(BOTH, warmup_iters=350)),
    'both, alpha 0.8': ('resnet50_narrow_adn', {}, dict(BOTH, alpha=0.8)),
    'ViT': ('vit_narrow', {}, None),
    'ViT-Base': ('vit_narrow_base', {}, None),
    'ViT both': ('vit_narrow_adn', {}, LOGITS),
    'ViT norms': ('vit_narrow_adn', {}, LABELS),
    'ViT distillation': ('vit_narrow_adn', SHARED_NORMS, LOGITS),
    'ViT neither': ('vit_narrow_adn', SHARED_NORMS, LABELS),
}
ALONE_AS = {'R50': 'FFFF', 'R50-Base': 'TTTT', 'ViT': 'FFFF', 'ViT-Base': 'TTTT'}  # the depth that is trained alone
Result = dict[str, Any]


def load_split(cfg: Config, split: str) -> tuple[Tensor, Tensor]:
    """All images of a split, (N, 1, 32, 32) of 0 to 255, and their labels, (N,)."""
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, split=split, pipeline=[], test_mode=split == 'test'))
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    images = np.stack([cv2.resize(np.array(info['img']), (32, 32)) for info in infos])
    return torch.from_numpy(images).unsqueeze(1), torch.tensor([int(info['gt_label']) for info in infos])


class Batches:
    """A split, as normalised batches."""

    def __init__(self, cfg: Config, split: str) -> None:
        self.images, self.labels = load_split(cfg, split)
        self.mean, self.std = cfg.data_preprocessor.mean[0], cfg.data_preprocessor.std[0]

    def normalised(self, images: Tensor) -> Tensor:
        """What the network takes, of images of 0 to 255."""
        return ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once."""
        for images, labels in zip(self.images.split(500), self.labels.split(500)):
            yield self.normalised(images), labels

    def shuffled(self, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``steps`` batches, shifted and flipped at random; the same ones for every row of a seed."""
        generator = torch.Generator().manual_seed(seed)
        order: Tensor = torch.empty(0, dtype=torch.long)
        window = torch.arange(32)
        for _ in range(steps):
            if len(order) < BATCH:
                order = torch.randperm(len(self.images), generator=generator)
            chosen, order = order[:BATCH], order[BATCH:]
            padded = nn.functional.pad(self.images[chosen, 0], (2, 2, 2, 2))
            rows, columns = (torch.randint(5, (BATCH, 1), generator=generator) + window for _ in range(2))
            flipped = torch.rand(BATCH, 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
            cut = padded[torch.arange(BATCH)[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield self.normalised(cut.unsqueeze(1)), self.labels[chosen]


def build(row: str, seed: int) -> nn.Module:
    """The classifier of a row, freshly initialised."""
    network, changes, _ = ROWS[row]
    cfg = Config.fromfile(str(CONFIGS / f'{network}_fashion_mnist.py'))
    cfg.merge_from_dict(changes)
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.to(memory_format=torch.channels_last)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as in the configs: norms and biases have no decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        dict(params=[p for p in parameters if p.dim() > 1], weight_decay=0.05),
        dict(params=[p for p in parameters if p.dim() == 1], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)


def train(row: str, seed: int, steps: int, batches: Batches) -> tuple[nn.Module, dict[str, float]]:
    """Train a row; returns the model, and the mean of what it logged over the last 100 steps."""
    model, settings = build(row, seed), ROWS[row][2]
    model.train()
    distillation = SelfDistillation(model, DistillationSettings(**settings)) if settings is not None else None
    if distillation:
        distillation.attach()
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, steps, pct_start=WARM_UP, cycle_momentum=False, div_factor=100
    )
    logged: list[dict[str, float]] = []
    for step, (images, labels) in enumerate(batches.shuffled(steps, seed)):
        if distillation and distillation.settings.warmup_iters:
            distillation.kd_ramp = min(1.0, step / distillation.settings.warmup_iters)
        losses = model(images, [DataSample().set_gt_label(label) for label in labels], mode='loss')
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
        schedule.step()
        logged.append({name: float(value.detach()) for name, value in losses.items()})
    if distillation:
        distillation.detach()
    return model, {name: float(np.mean([entry[name] for entry in logged[-100:]])) for name in logged[-1]}


@torch.no_grad()
def correct(model: Any, batches: Batches) -> np.ndarray:
    """Whether each image is classified correctly, (N,)."""
    model.eval()
    return np.concatenate(
        [(model.head(model.extract_feat(images)).argmax(1) == labels).numpy() for images, labels in batches.in_order()]
    )


@torch.no_grad()
def recalibrate(model: Any, batches: Batches) -> None:
    """Estimate the statistics of all norms that run at the skip in force anew, on training images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for images, _ in batches.shuffled(RECALIBRATION, seed=1000):
        model.extract_feat(images)


def packed(right: np.ndarray) -> str:
    """Booleans as base64 of bits."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """What was packed, of 10,000 images, as 0 and 1."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:10_000].astype(float)


def test(
    model: nn.Module, codes: Sequence[str], recalibrated: Sequence[str], train_set: Batches, test_set: Batches
) -> dict[str, str]:
    """Which test images are right at each code, and with statistics of their own at each of ``recalibrated``."""
    found = {}
    for code in (*codes, *(f'{code} recalibrated' for code in recalibrated)):
        twin = copy.deepcopy(model)
        if not code.startswith(ALONE):
            set_skip(twin, code.split()[0])
        if ' ' in code:
            recalibrate(twin, train_set)
        found[code] = packed(correct(twin, test_set))
    return found


def both_splits(data_root: str) -> tuple[Batches, Batches]:
    """Training and test images."""
    cfg = Config.fromfile(str(CONFIGS / 'resnet50_narrow_fashion_mnist.py'))
    cfg.test_dataloader.dataset.data_root = data_root
    return Batches(cfg, 'train'), Batches(cfg, 'test')


def run(rows: Sequence[str], seeds: Sequence[int], steps: int, data_root: str, path: Path, all_codes: bool) -> None:
    """Train and test the rows that ``path`` lacks, seed by seed; test all depths of those that are trained."""
    train_set, test_set = both_splits(data_root)
    results = json.loads(path.read_text()) if path.exists() else []
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    for seed, row in itertools.product(seeds, rows):
        checkpoint = CHECKPOINTS / f'{row}_{seed}_{steps}.pth'
        is_joint = ROWS[row][2] is not None
        result = next((r for r in results if (r['row'], r['seed'], r['steps']) == (row, seed, steps)), None)
        if result is None:
            began = time.process_time()
            model, logged = train(row, seed, steps, train_set)
            seconds = time.process_time() - began
            torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
            codes = ['FFFF', 'TTTT', 'TFFF', 'FFFT'] if is_joint else [ALONE]
            has_statistics = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
            right = test(model, codes, codes[:2] if has_statistics else [], train_set, test_set)
            result = dict(row=row, seed=seed, steps=steps, seconds=seconds, logged=logged, right=right)
            results.append(result)
        elif all_codes and is_joint:
            model = build(row, seed)
            model.load_state_dict(torch.load(checkpoint)['state_dict'])
            codes = [code for code in map(str, SkipConfig.all(4)) if code not in result['right']]
            result['right'] |= test(model, codes, [], train_set, test_set)
        else:
            continue
        path.write_text(json.dumps(results, indent=1) + '\n')
        shown = ', '.join(f'{code} {100 * unpacked(text).mean():.2f}' for code, text in result['right'].items())
        print(f'{row}, seed {seed}: {shown}; {result["seconds"]:.0f} s; {result["logged"]}', flush=True)


def print_gradients(row: str, seed: int, steps: int, train_set: Batches) -> None:
    """Print how the gradients of the loss's parts lie to each other, on the convolutions that both nets use.

    They are those of a trained row, with labels for both nets and all distillation, on 10 training batches.
    """
    model = build(row, seed)
    model.load_state_dict(torch.load(CHECKPOINTS / f'{row}_{seed}_{steps}.pth')['state_dict'])
    model.train()
    distillation = SelfDistillation(model, DistillationSettings(prediction_weight=1.0))
    distillation.attach()
    own = {id(p) for stage in distillation.backbone.stages for block in stage.skippable for p in block.parameters()}
    shared = [p for p in distillation.backbone.parameters() if p.dim() > 1 and id(p) not in own]
    found: dict[str, list[tuple[float, float]]] = {}
    for images, labels in train_set.shuffled(10, seed=2000):
        losses = model(images, [DataSample().set_gt_label(label) for label in labels], mode='loss')
        of_super = torch.empty(0)
        for part in ('super.loss', 'base.loss', 'kd.loss_cls', 'kd.loss_stage'):
            loss = sum(value for name, value in losses.items() if name.startswith(part))
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)])
            of_super = gradient if part == 'super.loss' else of_super
            ratio, cosine = gradient.norm() / of_super.norm(), torch.cosine_similarity(gradient, of_super, dim=0)
            found.setdefault(part, []).append((float(ratio), float(cosine)))
    for part, pairs in found.items():
        ratio, cosine = np.mean(pairs, axis=0)
        print(f'{row}, seed {seed}: {part} has {ratio:.2f} of the norm of super.loss, cosine {cosine:+.2f}', flush=True)


COLUMNS = {
    'super-net': 'FFFF',
    'base-net': 'TTTT',
    'super-net, recalibrated': 'FFFF recalibrated',
    'base-net, recalibrated': 'TTTT recalibrated',
    'TFFF': 'TFFF',
    'FFFT': 'FFFT',
}
VITS = ('ViT both', 'ViT norms', 'ViT distillation', 'ViT neither')
JOINT = ('both', 'norms', 'distillation', 'neither', 'both, labels', *VITS)
# Accuracy of a row at a code less that of another at its code, seed by seed.
CONTRASTS = [
    ('R50', ALONE, 'R50-Base', ALONE),
    ('both', 'FFFF', 'R50', ALONE),
    ('both', 'TTTT', 'R50-Base', ALONE),
    ('both', 'FFFF recalibrated', 'both', 'FFFF'),
    ('both', 'TTTT recalibrated', 'both', 'TTTT'),
    ('norms', 'FFFF', 'R50', ALONE),
    ('norms', 'TTTT', 'R50-Base', ALONE),
    ('both, labels', 'FFFF', 'R50', ALONE),
    ('both, labels', 'TTTT', 'R50-Base', ALONE),
    *(
        ('both', code, other, code)
        for other in ROWS
        if 'ViT' not in other and other not in ('R50', 'R50-Base', 'both')
        for code in ENDS
    ),
    *((other, code, 'neither', code) for other in ('norms', 'distillation') for code in ENDS),
    *((row, f'{code} recalibrated', row, code) for row in ('norms', 'neither', 'distillation') for code in ENDS),
    *(('norms', f'{code} recalibrated', 'neither', f'{code} recalibrated') for code in ENDS),
    *(('both, labels', code, 'norms', code) for code in ENDS),
    ('ViT', ALONE, 'ViT-Base', ALONE),
    *((row, 'FFFF', 'ViT', ALONE) for row in VITS),
    *((row, 'TTTT', 'ViT-Base', ALONE) for row in VITS),
    *(('ViT both', code, other, code) for other in VITS[1:] for code in ENDS),
    *((other, code, 'ViT neither', code) for other in VITS[1:3] for code in ENDS),
    *((row, 'TFFF', row, 'FFFT') for row in JOINT),
    *((row, 'FFFF', row, 'TTTT') for row in JOINT),
]


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean of differences (seeds, images), and the half of its 95 % interval.

    Seeds and images are both samples: by seed Student's t, by image (of the mean over the seeds) the normal
    distribution; the two halves are added as squares.
    """
    by_seed, by_image = differences.mean(1), differences.mean(0)
    num_seeds, num_images = differences.shape
    of_seeds = stats.t.ppf(0.975, num_seeds - 1) * by_seed.std(ddof=1) / num_seeds**0.5 if num_seeds > 1 else np.nan
    of_images = 1.96 * by_image.std(ddof=1) / num_images**0.5
    return float(by_seed.mean()), float(np.hypot(of_seeds, of_images))


def mcnemar(differences: np.ndarray) -> float:
    """The exact p of one seed's differences, (images,) of -1, 0 and 1."""
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def report(results: list[Result]) -> None:
    """Print the table in Markdown and the intervals, and draw all depths."""
    right: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for result in results:
        for code, text in result['right'].items():
            right.setdefault(result['row'], {}).setdefault(code, {})[result['seed']] = unpacked(text)
    print(f'| row | {" | ".join(COLUMNS)} |\n|---|{"---:|" * len(COLUMNS)}')
    for row in (row for row in ROWS if row in right):
        codes = [code.replace(ALONE_AS.get(row, ALONE), ALONE) for code in COLUMNS.values()]
        shown = [spread(right[row][code]) if code in right[row] else '' for code in codes]
        print(f'| {" | ".join([row, *shown])} |')
    for row, code, other, other_code in CONTRASTS:
        ours, theirs = right.get(row, {}).get(code, {}), right.get(other, {}).get(other_code, {})
        if seeds := sorted(ours.keys() & theirs.keys()):
            differences = np.stack([ours[seed] - theirs[seed] for seed in seeds])
            mean, half = interval(differences)
            each = ', '.join(f'{100 * d.mean():+.2f} (p {mcnemar(d):.2g})' for d in differences)
            print(f'{row} {code} - {other} {other_code}: {100 * mean:+.2f} ± {100 * half:.2f}; by seed {each}')
    PLOT.write_bytes(picture(right))


def spread(by_seed: dict[int, np.ndarray]) -> str:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * right.mean() for right in by_seed.values()]
    return (
        f'{np.mean(values):.2f}' + (f' ± {np.std(values, ddof=1):.2f}' if len(values) > 1 else '') + f' ({len(values)})'
    )


def picture(right: dict[str, dict[str, dict[int, np.ndarray]]]) -> bytes:
    """Mean accuracy of all depths, and of the nets trained alone, against their cost."""
    rows: list[dict[str, Any]] = []
    for row in (row for row in ('both', 'norms', 'R50', 'R50-Base') if row in right):
        codes = [None] if ALONE in right[row] else list(SkipConfig.all(4))
        for code, cost in zip(codes, count_costs(build(row, 0), codes if codes[0] else None, (32, 32))):
            if by_seed := right[row].get(str(code or ALONE)):
                top1 = float(np.mean([found.mean() for found in by_seed.values()]))
                rows.append(dict(skip=code and str(code), top1=top1, gmacs=cost.gmacs, run=row))
    found = plot_accuracy_against_cost(rows)
    assert found is not None
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['train', 'gradients', 'report'])
    parser.add_argument('--rows', help=f'separated by semicolons, of {"; ".join(ROWS)}; default all')
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--steps', type=int, default=STEPS)
    parser.add_argument('--data-root', default='data/fashion_mnist')
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--all-codes', action='store_true', help='test all depths of rows that are trained already')
    args = parser.parse_args()
    rows, seeds = args.rows.split(';') if args.rows else list(ROWS), list(map(int, args.seeds.split(',')))
    if unknown := set(rows) - ROWS.keys():
        parser.error(f'--rows should be of {"; ".join(ROWS)}, but got {"; ".join(unknown)}')
    init_default_scope('mmpretrain')
    MMLogger.get_instance('fashion_mnist', log_level='WARNING')
    if args.what == 'train':
        run(rows, seeds, args.steps, args.data_root, args.results, args.all_codes)
    elif args.what == 'gradients':
        train_set, _ = both_splits(args.data_root)
        for row, seed in itertools.product(rows, seeds):
            print_gradients(row, seed, args.steps, train_set)
    else:
        report(json.loads(args.results.read_text()))


if __name__ == '__main__':
    main()
