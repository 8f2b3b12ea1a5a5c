"""A training step of an any-depth detector beside those of the two nets that it replaces."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarks.memory import peak_gpu_bytes, peak_saved_bytes
from benchmarks.ratios import DEVICE, Timings
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, init_default_scope

from adn_mmdet.backbones.adaptive_depth import find_backbone
from adn_mmdet.cost.timing import interleaved_medians
from adn_mmdet.distillation import DistillationSettings, SelfDistillation
from adn_mmdet.errors import UserError

SUPER_NET, BASE_NET, ADN = 'individual super-net', 'individual base-net', 'ADN'
ADN_FEATURES, ADN_SEQUENTIAL = 'ADN, gt_weight=0', "ADN, mode='sequential'"
NUM_OBJECTS = 7  # an image of COCO has 7.3


@dataclass(frozen=True)
class TrainingStep:
    """One step of one net; calling it takes the step and gives its log."""

    detector: BaseDetector
    take: Callable[[], dict[str, Any]]

    def __call__(self) -> dict[str, Any]:
        """Take the step."""
        return self.take()

    def peak_saved_bytes(self) -> int:
        """What it holds for its backward; see :func:`~benchmarks.memory.peak_saved_bytes`."""
        return peak_saved_bytes(self.take, self.detector)


def time_training(cfg: Config, shape: tuple[int, int], batch_size: int, rounds: int) -> Timings:
    """Seconds of a step of each net, and ratios of ADN's time and memory: held for the backward; on a GPU all of it.

    Args:
        cfg: the config of an any-depth detector.
        shape: height and width of the images.
        batch_size: images a step.
        rounds: timed steps of each net.

    Raises:
        UserError: as :func:`training_steps`.
    """
    steps = training_steps(cfg, shape, batch_size, DEVICE)
    seconds = interleaved_medians(steps, rounds, warmup=3)
    both, alone = seconds[SUPER_NET] + seconds[BASE_NET], steps[SUPER_NET].peak_saved_bytes()
    adn = [name for name in steps if name not in (SUPER_NET, BASE_NET)]
    ratios = {f'time: {name} / both individual nets': seconds[name] / both for name in adn}
    ratios |= {f'held activations: {name} / {SUPER_NET}': steps[name].peak_saved_bytes() / alone for name in adn}
    if DEVICE == 'cuda':
        whole = peak_gpu_bytes(steps[SUPER_NET])
        ratios |= {f'peak memory: {name} / {SUPER_NET}': peak_gpu_bytes(steps[name]) / whole for name in adn}
    return seconds, ratios


def training_steps(cfg: Config, shape: tuple[int, int], batch_size: int, device: str) -> dict[str, TrainingStep]:
    """One training step, as the Runner takes it, of each net: forward, backward, optimiser step.

    All nets have the same random weights and get the same images of noise, the samplers' seed is the same for every
    step, and nothing is learned (rate 0), so that the nets' work is comparable and does not change between steps.

    Args:
        cfg: the config of an any-depth detector; its hook says how ADN is distilled.
        shape: height and width of the images.
        batch_size: images a step.
        device: where to train.

    Returns:
        By net: the detector alone with all of its blocks, with the mandatory ones, the any-depth detector, the same
        with features only, and the same in sequential mode.

    Raises:
        UserError: ``cfg`` does not distil, or its detector has no adaptive depth.
    """
    init_default_scope('mmdet')
    backbone = cfg.model.backbone
    backbone.init_cfg = None
    detector = MODELS.build(cfg.model)
    stages = find_backbone(detector).stages
    torch.manual_seed(0)
    detector.init_weights()
    settings = _hook_settings(cfg)
    stock = {key: value for key, value in backbone.items() if key not in ('type', 'skip', 'skip_aware_norm')}
    shallow = dict(stock, type='ShallowResNet', stage_blocks=[stage.num_mandatory for stage in stages])
    nets: dict[str, tuple[dict[str, Any], DistillationSettings | None]] = {
        SUPER_NET: (dict(stock, type='ResNet'), None),
        BASE_NET: (shallow, None),
        ADN: (backbone, settings),
        ADN_FEATURES: (backbone, replace(settings, gt_weight=0.0)),
        ADN_SEQUENTIAL: (backbone, replace(settings, mode='sequential')),
    }
    weights = detector.state_dict()
    steps = {}
    for name, (own_backbone, own_settings) in nets.items():
        net = MODELS.build({**cfg.model, 'backbone': own_backbone})
        net.load_state_dict(weights, strict=False)
        net.to(device).train()
        if own_settings is not None:
            SelfDistillation(net, own_settings).attach()
        steps[name] = _training_step(net, cfg, shape, batch_size)
    return steps


def _hook_settings(cfg: Config) -> DistillationSettings:
    hooks = [hook for hook in cfg.get('custom_hooks', []) if hook.type == 'SkipAwareDistillationHook']
    if len(hooks) != 1:
        raise UserError(f'custom_hooks should hold one SkipAwareDistillationHook, but has {len(hooks)}')
    return HOOKS.build(hooks[0]).settings


def _training_step(detector: BaseDetector, cfg: Config, shape: tuple[int, int], batch_size: int) -> TrainingStep:
    optim_cfg = copy.deepcopy(cfg.optim_wrapper)
    optim_cfg.optimizer.lr = 0.0
    optim_wrapper = build_optim_wrapper(detector, optim_cfg)
    num_classes = max(getattr(module, 'num_classes', 0) for module in detector.modules())
    data = demo_mm_inputs(
        batch_size,
        [[3, *shape]] * batch_size,
        num_items=[NUM_OBJECTS] * batch_size,
        num_classes=num_classes,
        with_mask=detector.with_mask,
    )

    def step() -> dict[str, Any]:
        torch.manual_seed(0)
        return detector.train_step(data, optim_wrapper)

    return TrainingStep(detector, step)
