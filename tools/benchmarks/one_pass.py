"""One pass over several sub-networks, to be measured against the same sub-networks one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config

from adn_mmdet.backbones.adaptive_depth import find_backbone
from adn_mmdet.backbones.sharing import sharing
from adn_mmdet.checkpoints.norms import estimate_statistics
from adn_mmdet.errors import UserError
from adn_mmdet.evaluation.shared_calls import preprocessed_once
from adn_mmdet.skip_config import SkipConfig

BACKBONE, DETECTOR = 'backbone', 'detector'
APART, TOGETHER = 'one by one', 'in one pass'
Batch = dict[str, Any]


def read_batches(folder: Path | None, shape: tuple[int, int], number: int) -> list[Batch]:
    """Batches of one image, as a data loader gives them.

    Args:
        folder: of images, in the order of their names; None takes noise.
        shape: height and width to which they are resized.
        number: how many.

    Raises:
        UserError: the folder holds no image.
    """
    batches = [demo_mm_inputs(1, [[3, *shape]]) for _ in range(number)]
    if folder is None:
        return batches
    paths = sorted(path for path in folder.glob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not paths:
        raise UserError(f'--images {folder} should be a folder with .jpg or .png images, but has none')
    for batch, path in zip(batches, cycle(paths)):
        image = mmcv.imresize(mmcv.imread(str(path)), shape[::-1])
        batch['inputs'] = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))]
    return batches


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
