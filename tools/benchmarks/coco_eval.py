"""Times COCO evaluation alone, by faster-coco-eval against pycocotools: python tools/benchmarks/coco_eval.py FILE."""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCOeval
from mmdet.evaluation import CocoMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from adn_mmdet.cost.timing import interleaved_medians
from adn_mmdet.evaluation import coco_metric

COPIES, ROUNDS = 8, 7


def _polygons(thing: dict[str, Any]) -> list[list[float]]:
    if isinstance(thing['segmentation'], list):
        return thing['segmentation']
    x, y, width, height = thing['bbox']  # of a mask: its box without a corner
    return [[x, y, x + width, y, x, y + height]]


def perturbed(annotations: Path, copies: int = 1) -> Iterator[dict[str, Any]]:
    """Detections near the truth: boxes and masks moved and stretched, equal scores, sometimes the wrong class."""
    truth, rng = _read(annotations), np.random.default_rng(0)
    cat_ids = truth.getCatIds()
    for img_id, image in truth.imgs.items():
        things = truth.loadAnns(truth.getAnnIds(img_id, iscrowd=False)) * copies
        boxes, masks = [], []
        for thing in things:
            start, size = np.split(np.array(thing['bbox']), 2)
            shift, stretch = rng.normal(0, 0.1, 2) * size, rng.normal(1, 0.1, 2)
            boxes.append([*(start + shift), *(start + shift + size * stretch)])
            moved = [start + shift + (np.reshape(points, (-1, 2)) - start) * stretch for points in _polygons(thing)]
            rles = coco_mask.frPyObjects([points.ravel().tolist() for points in moved], image['height'], image['width'])
            masks.append(coco_mask.merge(rles))
        labels = np.array([cat_ids.index(thing['category_id']) for thing in things], int)
        yield dict(
            img_id=img_id,
            bboxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=rng.uniform(size=len(things)).round(2),
            labels=(labels + (rng.uniform(size=len(things)) < 0.1)) % len(cat_ids),
            masks=masks,
        )


def _read(annotations: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations))


def build_metric(annotations: Path, metric_type: str = 'ExactCocoMetric', **kwargs: Any) -> CocoMetric:
    """A metric of boxes and masks on an annotation file, with all of its categories."""
    config = dict(type=metric_type, ann_file=str(annotations), metric=['bbox', 'segm'], _scope_='mmdet')
    metric = METRICS.build(config | kwargs)
    metric.dataset_meta = dict(classes=[c['name'] for c in json.loads(annotations.read_text())['categories']])
    return metric


def main(annotations: Path) -> None:
    """Perturbed detections of every object of an annotation file, evaluated by both; prints medians and ratios."""
    MMLogger.get_instance('benchmark', log_level='WARNING')
    metric = build_metric(annotations)
    predictions = list(perturbed(annotations, copies=COPIES))
    metric.compute_metrics([({}, prediction) for prediction in predictions])  # numbers images and annotations
    print(f'{sum(len(image["labels"]) for image in predictions)} detections on {len(predictions)} images')
    backends = {'pycocotools': COCOeval, 'faster-coco-eval': coco_metric.evaluation_class()}
    labels = np.arange(len(metric.dataset_meta['classes']))
    for name in ('bbox', 'segm'):
        found = metric.numbered(predictions, name, labels)

        def evaluate(backend: type, name: str = name, found: COCO = found) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                metric.accumulate(backend, found, name, labels)

        seconds = interleaved_medians({key: partial(evaluate, backend) for key, backend in backends.items()}, ROUNDS, 1)
        slow, fast = seconds.values()
        print(f'{name}: pycocotools {slow:.3f} s, faster-coco-eval {fast:.3f} s, {slow / fast:.1f} times faster')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
