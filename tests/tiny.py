"""Tiny detectors and inputs: the real configs with narrow layers, for 64×64 images."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tools'))  # at the end: tools/test.py must not hide Python's own `test`
TINY_BACKBONE = dict(base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None)
DETECTORS = ('faster_rcnn', 'mask_rcnn', 'retinanet')


def tiny_config(detector: str = 'faster_rcnn', kind: str = 'adn', **backbone: Any) -> Config:
    """The COCO config of a detector, narrowed."""
    return narrow(Config.fromfile(str(ROOT / 'configs' / f'{detector}_r50_{kind}_1x_coco.py')), **backbone)


def stock_config(name: str) -> Config:
    """One of mmdet's own configs, such as ``'dino/dino-4scale_r50_8xb2-12e_coco'``."""
    return Config.fromfile(str(Path(mmdet.__file__).parent / '.mim' / 'configs' / f'{name}.py'))


def narrow(cfg: Config, **backbone: Any) -> Config:
    """The config of a Faster R-CNN, Mask R-CNN or RetinaNet with narrow layers and three classes, in place."""
    channels, num_classes = 16, 3
    cfg.model.backbone.update(TINY_BACKBONE | backbone)
    cfg.model.neck.update(in_channels=[32, 64, 128, 256], out_channels=channels)
    if 'roi_head' not in cfg.model:
        cfg.model.bbox_head.update(
            in_channels=channels, feat_channels=channels, stacked_convs=1, num_classes=num_classes
        )
        return cfg
    cfg.model.rpn_head.update(in_channels=channels, feat_channels=channels)
    roi_head = cfg.model.roi_head
    roi_head.bbox_roi_extractor.out_channels = channels
    for head in roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]:
        head.update(in_channels=channels, fc_out_channels=32, num_classes=num_classes)
    if roi_head.get('mask_head'):
        roi_head.mask_roi_extractor.out_channels = channels
        roi_head.mask_head.update(
            in_channels=channels, conv_out_channels=channels, num_convs=1, num_classes=num_classes
        )
    return cfg


def small_images(cfg: Config) -> Config:
    """A config that resizes test images to 64 pixels, finds few objects and names three classes, in place."""
    if 'roi_head' in cfg.model:
        cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
        cfg.model.test_cfg.rcnn.max_per_img = 10
    dataset = cfg.test_dataloader.dataset
    for step in dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (64, 64)
    dataset.metainfo = dict(classes=('circle', 'rectangle', 'triangle'))
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    """The detector of a config, with the same weights every time."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(cfg.model)
    randomize_norms(detector)
    return detector


def randomize_norms(model: torch.nn.Module) -> None:
    """Give every norm, of both sets, weights and statistics of its own, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm)):
            module.weight.data.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def batch(
    detector: torch.nn.Module, num_items: list[int] | None = None, with_mask: bool = True, size: int = 64
) -> dict[str, Any]:
    """Two preprocessed images, of ``num_items`` objects each, as a detector's forward takes them."""
    inputs = demo_mm_inputs(2, [[3, size, size]] * 2, num_items=num_items or [3, 2], num_classes=3, with_mask=with_mask)
    return detector.data_preprocessor(inputs, True)


def load_tool(name: str) -> ModuleType:
    """A script of tools/ as a module, so that its ``main(argv)`` runs in this process."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
