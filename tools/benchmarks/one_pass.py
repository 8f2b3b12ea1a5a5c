"""One pass over several operating points, against the same points one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from benchmarks.ratios import DEVICE, Timings
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from adn_mmdet.backbones.adaptive_depth import find_backbone
from adn_mmdet.backbones.sharing import sharing
from adn_mmdet.checkpoints import estimate_statistics, load_for_testing
from adn_mmdet.cost.images import TimedImages, find_images
from adn_mmdet.cost.timing import interleaved_medians
from adn_mmdet.evaluation.loops import preprocessed_once
from adn_mmdet.operating_point import OperatingPoint, parse_numbers
from adn_mmdet.points import using_point
from adn_mmdet.skip_config import SkipConfig

BACKBONE, DETECTOR = 'backbone', 'detector'
APART, TOGETHER = 'one by one', 'in one pass'
Batch = dict[str, Any]
Batches = Mapping[int | None, Batch]  # one a size


def time_one_pass(
    cfg: Config,
    checkpoint: str | None,
    skip: str,
    images: str | None,
    shape: tuple[int, int],
    batch_size: int,
    rounds: int,
    sizes: str | None = None,
    proposals: str | None = None,
) -> Timings:
    """Seconds of all points one by one and in one pass, backbone and detector, and the ratios.

    Args:
        cfg: the config of an any-depth detector; without weights it is changed.
        checkpoint: weights; None takes untrained ones of one class that detect a fixed number.
        skip: a comma list of codes, or ``all``.
        images: a folder; None takes noise.
        shape: height and width of the images; of another size both change in proportion.
        batch_size: images a call.
        rounds: timed calls of each.
        sizes: a comma list of short sides in pixels; None takes that of ``shape``.
        proposals: a comma list of numbers of proposals; None takes the config's.

    Raises:
        UserError: there is no image, or the weights or codes do not fit.
    """
    source = find_images(cfg, images) if images else TimedImages()
    shapes = {size: _resized(shape, size) for size in parse_numbers('size', sizes)}
    supply = {size: islice(source.batches(each, batch_size), rounds) for size, each in shapes.items()}
    batches = [dict(zip(supply, of_sizes)) for of_sizes in zip(*supply.values())]
    if not checkpoint:
        detect_a_fixed_number(cfg)
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).to(DEVICE).eval()
    codes = SkipConfig.parse_list(skip, find_backbone(detector).letter_groups)
    if checkpoint:
        load_for_testing(detector, checkpoint, codes)
    else:
        initialize(detector, [next(iter(batch.values())) for batch in batches[:4]])
    points = OperatingPoint.product(codes, shapes, parse_numbers('proposals', proposals))
    calls = one_pass_calls(detector, points, batches)
    found = calls[f'{DETECTOR}, {TOGETHER}']()
    print(f'{len(points)} points, {found / len(points):.1f} detections each in the first image')
    seconds = interleaved_medians(calls, rounds, warmup=1)
    ratios = {
        f'{what}, {TOGETHER} / {APART}': seconds[f'{what}, {TOGETHER}'] / seconds[f'{what}, {APART}']
        for what in (BACKBONE, DETECTOR)
    }
    return seconds, ratios


def detect_a_fixed_number(cfg: Config) -> None:
    """Let untrained weights of one class detect as many objects an image as are kept at most (100 on COCO)."""
    cfg.model.backbone.init_cfg = None
    roi_head = cfg.model.get('roi_head')
    for head in [roi_head.bbox_head, roi_head.get('mask_head')] if roi_head else [cfg.model.bbox_head]:
        if head:
            head.num_classes = 1
    (cfg.model.test_cfg.get('rcnn') or cfg.model.test_cfg).score_thr = 0.0


@torch.no_grad()
def initialize(detector: BaseDetector, batches: Sequence[Batch]) -> None:
    """Draw weights, and give the norms the statistics of images, so that features neither vanish nor explode."""
    detector.init_weights()
    buffers, groups = dict(detector.named_buffers()), find_backbone(detector).letter_groups
    for code in (SkipConfig.super_net(groups), SkipConfig.base_net(groups)):
        for name, value in estimate_statistics(detector, code, copy.deepcopy(batches))[0].items():
            buffers[name].copy_(value)


def _resized(shape: tuple[int, int], size: int | None) -> tuple[int, int]:
    """Height and width in the proportion of ``shape``, the shorter of them ``size``."""
    height, width = (round(side * (size or min(shape)) / min(shape)) for side in shape)
    return height, width


def one_pass_calls(
    detector: BaseDetector, points: Sequence[OperatingPoint], batches: Sequence[Batches]
) -> dict[str, Callable[[], int]]:
    """By name what is to be timed; every call takes the next batches, one a size, and gives the number of detections.

    The detector's calls preprocess and predict; reading images and evaluating is left out.
    """
    backbone = find_backbone(detector)
    codes = list(dict.fromkeys(point.skip for point in points))

    def predict_apart(batch: Batches) -> int:
        found = 0
        for point in points:
            with using_point(detector, point):
                found += len(detector.test_step(copy.deepcopy(batch[point.size]))[0].pred_instances)
        return found

    def predict_together(batch: Batches) -> int:
        found = 0
        for size in batch:
            numbers = list(dict.fromkeys(point.proposals for point in points))
            with preprocessed_once(detector, copy.deepcopy(batch[size])) as predict:
                for code in codes:
                    with using_point(detector, OperatingPoint(code)):
                        found += sum(len(samples[0].pred_instances) for samples in predict(numbers))
        return found

    def backbone_apart(batch: Batches) -> int:
        each = [detector.data_preprocessor(of_size, False)['inputs'] for of_size in batch.values()]
        return sum(len(backbone(images, code)) for images in each for code in codes)

    def backbone_together(batch: Batches) -> int:
        with sharing(detector):
            return backbone_apart(batch)

    def on_next(function: Callable[[Batches], int], supply: Iterator[Batches]) -> Callable[[], int]:
        return torch.no_grad()(lambda: function(next(supply)))

    functions = {
        f'{BACKBONE}, {APART}': backbone_apart,
        f'{BACKBONE}, {TOGETHER}': backbone_together,
        f'{DETECTOR}, {APART}': predict_apart,
        f'{DETECTOR}, {TOGETHER}': predict_together,
    }
    return {name: on_next(function, cycle(batches)) for name, function in functions.items()}
