"""Tiny classifiers of mmpretrain, and images for them in folders of a class each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny import ROOT, randomize_norms

CLASSES = ('cat', 'dog', 'owl')
CONFIG = ROOT / 'configs' / 'classification' / 'resnet50_adn_in1k.py'
SMALL = """
_base_ = '{config}'
model = dict(
    backbone=dict(base_channels=8), head=dict(num_classes=3, in_channels=256, topk=(1, 2)))
data_preprocessor = dict(num_classes=3)
end = [dict(type='CenterCrop', crop_size=32), dict(type='PackInputs')]
pipeline = [dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=40, edge='short'), *end]
data = dict(pipeline=pipeline, data_root='{data}', metainfo=dict(classes={classes}))
loader = dict(batch_size=6, num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=data, **loader)
val_dataloader = dict(dataset=data, **loader)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, 2))
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""


def make_images(folder: Path, numbers: dict[str, int] | None = None) -> Path:
    """Images of noise: so many a class of each split."""
    rng = np.random.default_rng(0)
    for split, number in (numbers or dict(train=4, val=2)).items():
        for name in CLASSES:
            for index in range(number):
                image = rng.integers(256, size=(40, 48, 3), dtype=np.uint8)
                mmcv.imwrite(image, str(folder / split / name / f'{index}.png'))
    return folder


def small_config(folder: Path, data: Path) -> str:
    """The path of ResNet-50's config for such images, narrow, 32×32, three classes, one epoch of two steps."""
    path = folder / 'small.py'
    path.write_text(SMALL.format(config=CONFIG, data=data, classes=list(CLASSES)), encoding='utf-8')
    return str(path)


def classifier(
    num_classes: int = 6, head: dict[str, Any] | None = None, train_cfg: Any = None, **backbone: Any
) -> torch.nn.Module:
    """The config's classifier with narrow layers, whose norms do not move, so that passes repeat to the bit."""
    cfg = Config.fromfile(str(CONFIG))
    init_default_scope('mmpretrain')
    cfg.model.backbone.update(dict(base_channels=8, norm_eval=True) | backbone)
    cfg.model.head.update(dict(num_classes=num_classes, in_channels=256) | (head or {}))
    cfg.model.update(train_cfg=train_cfg, data_preprocessor=dict(cfg.data_preprocessor, num_classes=num_classes))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    randomize_norms(model)
    torch.nn.init.normal_(model.head.fc.weight, std=0.3)  # so that classes differ
    return model.train()
