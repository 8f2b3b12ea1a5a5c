"""One pass over several sub-networks, against the same sub-networks one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
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
from adn_mmdet.skip_config import SkipConfig

BACKBONE, DETECTOR = 'backbone', 'detector'
APART, TOGETHER = 'one by one', 'in one pass'
Batch = dict[str, Any]


def time_one_pass(
    cfg: Config,
    checkpoint: str | None,
    skip: str,
    images: str | None,
    shape: tuple[int, int],
    batch_size: int,
    rounds: int,
) -> Timings:
    """Seconds of all depths one by one and in one pass, backbone and detector, and the ratios.

    Args:
        cfg: the config of an any-depth detector; without weights it is changed.
        checkpoint: weights; None takes untrained ones of one class that detect a fixed number.
        skip: a comma list of codes, or ``all``.
        images: a folder; None takes noise.
        shape: height and width of the images.
        batch_size: images a call.
        rounds: timed calls of each.

    Raises:
        UserError: there is no image, or the weights or codes do not fit.
    """
    source = find_images(cfg, images) if images else TimedImages()
    batches = list(islice(source.batches(shape, batch_size), rounds))
    if not checkpoint:
        detect_a_fixed_number(cfg)
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).to(DEVICE).eval()
    codes = SkipConfig.parse_list(skip, find_backbone(detector).num_stages)
    if checkpoint:
        load_for_testing(detector, checkpoint, codes)
    else:
        initialize(detector, batches[:4])
    calls = one_pass_calls(detector, codes, batches)
    found = calls[f'{DETECTOR}, {TOGETHER}']()
    print(f'{found / len(codes):.1f} detections a depth in the first image')
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
    buffers, num_stages = dict(detector.named_buffers()), find_backbone(detector).num_stages
    for code in (SkipConfig.super_net(num_stages), SkipConfig.base_net(num_stages)):
        for name, value in estimate_statistics(detector, code, copy.deepcopy(batches))[0].items():
            buffers[name].copy_(value)


def one_pass_calls(
    detector: BaseDetector, codes: Sequence[SkipConfig], batches: Sequence[Batch]
) -> dict[str, Callable[[], int]]:
    """By name what is to be timed; every call takes the next batch and gives the number of detections.

    The detector's calls preprocess and predict; reading images and evaluating is left out.
    """
    backbone = find_backbone(detector)

    def predict_apart(batch: Batch) -> int:
        found = 0
        for code in codes:
            with backbone.using_skip(code):
                found += len(detector.test_step(copy.deepcopy(batch))[0].pred_instances)
        return found

    def predict_together(batch: Batch) -> int:
        found = 0
        with preprocessed_once(detector, copy.deepcopy(batch)) as predict:
            for code in codes:
                with backbone.using_skip(code):
                    found += len(predict()[0].pred_instances)
        return found

    def backbone_apart(batch: Batch) -> int:
        images = detector.data_preprocessor(batch, False)['inputs']
        return sum(len(backbone(images, code)) for code in codes)

    def backbone_together(batch: Batch) -> int:
        with sharing(detector):
            return backbone_apart(batch)

    def on_next(function: Callable[[Batch], int], supply: Iterator[Batch]) -> Callable[[], int]:
        return torch.no_grad()(lambda: function(next(supply)))

    functions = {
        f'{BACKBONE}, {APART}': backbone_apart,
        f'{BACKBONE}, {TOGETHER}': backbone_together,
        f'{DETECTOR}, {APART}': predict_apart,
        f'{DETECTOR}, {TOGETHER}': predict_together,
    }
    return {name: on_next(function, cycle(batches)) for name, function in functions.items()}
