from pathlib import Path

import cv2
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


@pytest.fixture
def video(shapes: Path, tmp_path: Path) -> str:
    """A video of four frames."""
    path = tmp_path / 'drive.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 8.0, (64, 64))
    for image in sorted((shapes / 'val').iterdir())[:4]:
        writer.write(cv2.imread(str(image)))
    writer.release()
    return str(path)
