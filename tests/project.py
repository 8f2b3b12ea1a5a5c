"""A folder as a user has it after cloning: narrow nets in the configs, and a small data set in the place of COCO."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import torch
from classifiers import make_images, small_config
from mmdet.registry import MODELS
from mmengine.config import Config
from tiny import ROOT, narrow, small_images

CLASSES = ('circle', 'rectangle', 'triangle')
DETECTOR = 'mask_rcnn_r50_adn_1x_coco'
CLASSIFIER = 'resnet50_adn_in1k'


def make_project(folder: Path, shapes: Path) -> Path:
    """Fill a folder with what the commands of README and docs name.

    Args:
        folder: an empty one.
        shapes: a set of ``make_shapes``, of images of 64×64.
    """
    (folder / 'tools').symlink_to(ROOT / 'tools')
    coco = folder / 'data' / 'coco'
    (coco / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (coco / f'{split}2017').symlink_to(shapes / split)
        shutil.copy(shapes / f'annotations/instances_{split}.json', coco / f'annotations/instances_{split}2017.json')
    (folder / 'configs').mkdir()
    for name in (DETECTOR, 'retinanet_r50_adn_1x_coco'):
        cfg = small_images(narrow(Config.fromfile(ROOT / f'configs/{name}.py')))
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.metainfo = dict(classes=CLASSES)
        cfg.train_dataloader.dataset.pipeline[2].scale = (64, 64)
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        cfg.dump(folder / f'configs/{name}.py')
    authors = MODELS.build(dict(type='AdaptiveDepthResNet', depth=50, base_channels=8)).state_dict()
    torch.save(authors, folder / 'downloaded.pth')
    (folder / 'pretrained').mkdir()
    torch.save(authors, folder / 'pretrained/resnet50_adn_imagenet.pth')  # so that nothing is downloaded
    image = cv2.imread(str(shapes / 'val/000001.png'))
    cv2.imwrite(str(folder / 'street.jpg'), image)
    writer = cv2.VideoWriter(str(folder / 'drive.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), 5, image.shape[1::-1])
    for _ in range(3):
        writer.write(image)
    writer.release()
    (folder / 'configs/classification').mkdir()
    images = make_images(folder / 'data' / 'imagenet')
    shutil.copy(images / 'val/owl/0.png', folder / 'bird.jpg')
    config = Path(small_config(folder, images))
    config.rename(folder / f'configs/classification/{CLASSIFIER}.py')
    return folder
