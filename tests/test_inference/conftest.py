from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny import build, small_images, tiny_config

from adn_mmdet.inference import AnyDepthInferencer

CLASSES = ('circle', 'rectangle', 'triangle')


@pytest.fixture(scope='session')
def tiny_cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A narrow any-depth Mask R-CNN, as a config file."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    small_images(tiny_config('mask_rcnn')).dump(path)
    return Config.fromfile(path)


@pytest.fixture(scope='session')
def checkpoint(tiny_cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for it: random, but those of the two sets of norms are told apart."""
    path = tmp_path_factory.mktemp('weights') / 'tiny.pth'
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=build(tiny_cfg).state_dict(), meta=meta), path)
    return path


@pytest.fixture
def inferencer(tiny_cfg: Config, checkpoint: Path, tmp_path: Path) -> AnyDepthInferencer:
    return AnyDepthInferencer(tiny_cfg, checkpoint, 'cpu', show_progress=False, cache_dir=tmp_path / 'cache')
