"""Small any-depth detectors with parts beyond the backbone, their stock selves, and stock ones that are cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from tiny import ROOT, TINY_BACKBONE, batch, randomize_norms, stock_config

from adn_mmdet import SkipConfig
from adn_mmdet.export.stock_backbone import stage_blocks
from adn_mmdet.export.sub_net import skipped_parts, sub_net_weights
from adn_mmdet.parts import stock_model

ADAPTIVE = {'ResNet': 'AdaptiveDepthResNet', 'CSPNeXt': 'AdaptiveDepthCSPNeXt', 'CSPDarknet': 'AdaptiveDepthCSPDarknet'}
NECK, HEAD = dict(type='SkippableCSP', of='neck'), dict(type='SkippableTower', of='bbox_head', keep=1)
ENCODER = dict(type='SkippableLayers', of='encoder')
DECODER = dict(type='SkippableLayers', of='decoder', skip_aware_norm=False)
SMALL = dict(feedforward_channels=16, num_layers=3)
PIXELS = dict(type='SkippableLayers', of='panoptic_head.pixel_decoder.encoder')


def _config(name: str) -> Config:
    return Config.fromfile(str(ROOT / 'configs' / f'{name}.py'))


def _made(name: str, *parts: dict[str, Any]) -> Config:
    """A config of mmdet, made any-depth by a diff of a few lines."""
    cfg = stock_config(name)
    cfg.model.update(type='AnyDepthDetector', of=cfg.model.type, parts=list(parts))
    cfg.model.backbone.type = ADAPTIVE[cfg.model.backbone.type]
    return cfg


CONFIGS: dict[str, Callable[[], Config]] = {
    'rtmdet': lambda: _config('rtmdet_m_adn_300e_coco'),
    'rtmdet-ins': lambda: _made('rtmdet/rtmdet-ins_m_8xb32-300e_coco', NECK, HEAD),
    'yolox': lambda: _made('yolox/yolox_s_8xb8-300e_coco', dict(NECK, keep=0), HEAD),
    'dino': lambda: _config('dino-4scale_r50_adn_12e_coco'),
    'deformable-detr': lambda: _config('deformable-detr_r50_adn_50e_coco'),
    'detr': lambda: _made('detr/detr_r50_8xb2-150e_coco', ENCODER, DECODER),
    'conditional-detr': lambda: _made('conditional_detr/conditional-detr_r50_8xb2-50e_coco', ENCODER, DECODER),
    'dab-detr': lambda: _made('dab_detr/dab-detr_r50_8xb2-50e_coco', ENCODER),
    'ddq': lambda: _made('ddq/ddq-detr-4scale_r50_8xb2-12e_coco', ENCODER, DECODER),
    'mask2former': lambda: _made('mask2former/mask2former_r50_8xb2-lsj-50e_coco', PIXELS),
}


def small_config(name: str) -> Config:
    """An any-depth config, for 64×64 images and three classes."""
    cfg = CONFIGS[name]()
    model = cfg.model
    model.data_preprocessor.batch_augments = None
    if 'widen_factor' in model.backbone:
        model.backbone.update(widen_factor=0.125, init_cfg=None)
        model.neck.update(in_channels=[32, 64, 128], out_channels=16)
        model.bbox_head.update(in_channels=16, feat_channels=16, num_classes=3)
        return cfg
    model.backbone.update(TINY_BACKBONE)
    model.test_cfg.update(max_per_img=10, max_per_image=10)
    if name == 'mask2former':
        model.panoptic_head.update(in_channels=[32, 64, 128, 256], num_queries=8, num_things_classes=3)
        model.panoptic_head.loss_cls.class_weight = [1.0] * 3 + [0.1]
        model.panoptic_fusion_head.num_things_classes = 3
        model.train_cfg.num_points = 64
    else:
        model.neck.in_channels = [32 * 2**index for index in model.backbone.out_indices]
        model.bbox_head.num_classes = 3
        model.num_queries = 20
    if 'dn_cfg' in model:
        model.dn_cfg.group_cfg.num_dn_queries = 4
    for part in model.parts:
        part.keep = 2
    _make_small(model)
    return cfg


def _make_small(cfg: Any) -> None:
    """Three layers, of feed-forward networks of 16 channels."""
    for value in cfg.values() if isinstance(cfg, dict) else ():
        _make_small(value)
        if isinstance(value, dict):
            value.update({key: small for key, small in SMALL.items() if key in value})


def stock_config_of(name: str, skipped: Sequence[Any] = ()) -> ConfigDict:
    """The model of a stock detector, without what parts skip."""
    model = stock_model(small_config(name).model, skipped)
    model.backbone.pop('skip', None)
    model.backbone.type = {adaptive: stock for stock, adaptive in ADAPTIVE.items()}[model.backbone.type]
    return model


@cache
def detector_of(name: str) -> torch.nn.Module:
    """An any-depth detector with the same weights every time, in eval mode; no test changes it."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(small_config(name).model)
    randomize_norms(detector)
    if hasattr(detector, 'level_embed'):  # memory as it was found, until init_weights
        torch.nn.init.normal_(detector.level_embed)
    detector.eval()
    return detector


def stock_of(name: str) -> torch.nn.Module:
    """The stock detector of the same weights, in eval mode."""
    stock = MODELS.build(stock_config_of(name))
    stock.load_state_dict({key: value for key, value in detector_of(name).state_dict().items() if '_skip.' not in key})
    stock.eval()
    return stock


def cut(name: str, code: str | SkipConfig) -> torch.nn.Module:
    """A stock detector of just what runs at a code, with the weights that it uses, in eval mode."""
    backbone = detector_of(name).backbone
    skip = SkipConfig.parse(code, backbone.letter_groups)
    model, blocks = stock_config_of(name, skipped_parts(backbone, skip)), stage_blocks(backbone, skip)
    if model.backbone.type == 'ResNet':
        model.backbone.update(type='ShallowResNet', stage_blocks=blocks)
    else:
        arch = [[*stage[:2], number, *stage[3:]] for stage, number in zip(backbone.arch_settings['P5'], blocks)]
        model.backbone.update(deepen_factor=1, arch_ovewrite=arch)
    with torch.device('meta'):
        stock = MODELS.build(model)
    stock.load_state_dict(sub_net_weights(detector_of(name), skip), assign=True)
    stock.eval()
    return stock


@cache
def data(name: str) -> dict[str, Any]:
    """Two preprocessed images of the same objects every time."""
    torch.manual_seed(3)
    return batch(detector_of(name), with_mask=name in ('mask2former', 'rtmdet-ins'))


def predictions(detector: torch.nn.Module, name: str) -> list[torch.Tensor]:
    """What a detector finds, as tensors."""
    with torch.no_grad():
        samples = detector(**copy.deepcopy(data(name)), mode='predict')
    return [value for sample in samples for value in sample.pred_instances.values()]


def losses(detector: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    """The losses of a training step, and their sum."""
    torch.manual_seed(5)  # dropout, denoising queries, points of masks
    return detector.parse_losses(detector(**copy.deepcopy(data(name)), mode='loss'))[1]
