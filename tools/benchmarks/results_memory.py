"""Peak memory of testing points on drawn masks: python tools/benchmarks/results_memory.py NUM_IMAGES NUM_POINTS."""

import resource
import sys
import time
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import nn

from adn_mmdet import ExactCocoMetric, SubNetTestLoop
from adn_mmdet.datasets.parsed import as_coco
from adn_mmdet.export.artifact import ArtifactBackbone

# An image of COCO, and the most that is kept of one; its detections are drawn from so many.
CLASSES, OBJECTS, DETECTIONS, HEIGHT, WIDTH, DRAWN = 80, 7, 100, 480, 640, 20


def _masks(number: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    start = np.random.uniform(0, (WIDTH - 128, HEIGHT - 128), (number, 2))
    boxes = np.hstack([start, start + np.random.uniform(16, 128, (number, 2))])
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    masks = []
    for x1, y1, x2, y2 in boxes:
        radius = np.random.uniform(0.7, 1, angles.shape)
        points = np.stack(
            [x1 + (x2 - x1) * (1 + radius * np.cos(angles)) / 2, y1 + (y2 - y1) * (1 + radius * np.sin(angles)) / 2]
        )
        masks.append(coco_mask.frPyObjects([points.T.ravel().tolist()], HEIGHT, WIDTH)[0])
    return boxes, masks


def _truth(images: list[int]) -> dict[str, Any]:
    things: list[dict[str, Any]] = []
    for image_id in images:
        for (x1, y1, x2, y2), mask in zip(*_masks(OBJECTS)):
            thing = dict(id=len(things) + 1, image_id=image_id, category_id=int(np.random.randint(CLASSES)), iscrowd=0)
            box = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
            things.append(thing | box | {'segmentation': mask})
    rows = [dict(id=image_id, height=HEIGHT, width=WIDTH) for image_id in images]
    return dict(images=rows, annotations=things, categories=[dict(id=n, name=str(n)) for n in range(CLASSES)])


class _Drawn(nn.Module):
    """A detector of drawn detections."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ArtifactBackbone(num_stages=8)  # 256 codes, in the place of as many points
        self.drawn = [_masks(DETECTIONS) for _ in range(DRAWN)]

    def test_step(self, image_id: int) -> list[DetDataSample]:
        boxes, masks = self.drawn[np.random.randint(DRAWN)]
        labels, scores = torch.randint(CLASSES, (DETECTIONS,)), torch.rand(DETECTIONS)
        own = [dict(mask, counts=bytes(bytearray(mask['counts']))) for mask in masks]
        found = InstanceData(bboxes=torch.from_numpy(boxes).float(), labels=labels, scores=scores, masks=own)
        return [DetDataSample(metainfo=dict(img_id=image_id, ori_shape=(HEIGHT, WIDTH)), pred_instances=found)]


class _Images(list[int]):
    @property
    def dataset(self) -> Any:
        return _Named(self)


class _Named(list[int]):
    metainfo = dict(classes=[str(number) for number in range(CLASSES)])


def main(num_images: int, num_points: int) -> None:
    """Print the peak memory when all is read, and after each evaluation."""
    np.random.seed(0)
    started = time.monotonic()

    def say(event: str, **kwargs: Any) -> None:
        if event in ('before_test', 'after_point', 'after_test'):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f'{event}: peak {peak:.2f} GiB, {time.monotonic() - started:.0f} s', flush=True)

    images = _Images(range(1, num_images + 1))
    metric = ExactCocoMetric(metric=['bbox', 'segm'])
    metric._coco_api = as_coco(_truth(images))
    runner = MagicMock(spec=['model', 'hooks', 'work_dir', 'call_hook', 'visualizer', 'logger'])
    runner.model, runner.hooks, runner.work_dir, runner.call_hook = _Drawn(), [], '.', say
    loop = SubNetTestLoop(runner, images, Evaluator([metric]))
    loop.points = loop.points[:num_points]
    loop.run()


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
