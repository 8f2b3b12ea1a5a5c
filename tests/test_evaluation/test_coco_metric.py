import contextlib
import io
import json
import math

import numpy as np
import pytest
from mmdet.evaluation import CocoMetric
from mmengine.registry import METRICS
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from adn_mmdet.datasets import CLASSES


@pytest.fixture(scope='module')
def annotations(shapes):
    return shapes / 'annotations' / 'instances_val.json'


def perturbed(annotations, seed=0):
    """Detections near the truth: moved boxes, cut masks, sometimes the wrong class."""
    content = json.loads(annotations.read_text())
    rng = np.random.default_rng(seed)
    for image in content['images']:
        truth = [a for a in content['annotations'] if a['image_id'] == image['id']]
        masks = np.stack([coco_mask.decode(a['segmentation']) for a in truth]) if truth else np.zeros((0, 64, 64), 'u1')
        masks = np.roll(masks, rng.integers(-2, 3), axis=-1)
        boxes = np.array([a['bbox'] for a in truth], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        yield dict(
            img_id=image['id'],
            bboxes=boxes + rng.normal(0, 1, boxes.shape),
            scores=rng.uniform(size=len(truth)),
            labels=np.array([(a['category_id'] - 1 + (rng.uniform() < 0.1)) % len(CLASSES) for a in truth], int),
            masks=[coco_mask.encode(np.asfortranarray(mask)) for mask in masks],
        )


def evaluate(metric_type, annotations, predictions, **kwargs):
    metric = METRICS.build(
        dict(type=metric_type, ann_file=str(annotations), metric=['bbox', 'segm'], _scope_='mmdet', **kwargs)
    )
    metric.dataset_meta = dict(classes=CLASSES)
    return metric.compute_metrics([(dict(), prediction) for prediction in predictions])


def test_same_as_mmdet_but_unrounded(annotations):
    exact = evaluate('ExactCocoMetric', annotations, perturbed(annotations))
    rounded = evaluate('CocoMetric', annotations, perturbed(annotations))
    assert 0.2 < exact['bbox_mAP'] < 1 and exact['bbox_mAP'] != round(exact['bbox_mAP'], 3)
    for key, value in rounded.items():
        if key.endswith('_copypaste'):
            continue
        assert round(exact[key], 3) == value or (value == -1 and math.isnan(exact[key])), key


def test_same_as_pycocotools_to_the_bit(annotations):
    exact = evaluate('ExactCocoMetric', annotations, perturbed(annotations))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        found = []
        for image in perturbed(annotations):
            for box, score, label in zip(image['bboxes'].tolist(), image['scores'], image['labels']):
                box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                found.append(dict(image_id=image['img_id'], bbox=box, score=score, category_id=int(label) + 1))
        coco_eval = COCOeval(truth, truth.loadRes(found), 'bbox')
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s')
    assert [exact[f'bbox_{name}'] for name in names] == coco_eval.stats[:4].tolist()


def test_no_detections_at_all(annotations):
    empty = dict(bboxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, int), masks=[])
    exact = evaluate('ExactCocoMetric', annotations, [dict(img_id=1, **empty)])
    assert exact['bbox_mAP'] == exact['segm_mAP'] == exact['bbox_AR@100'] == 0
    assert math.isnan(exact['bbox_mAP_l'])  # no object of that size


def test_what_it_does_not_evaluate_is_left_to_mmdet(annotations):
    own = evaluate('ExactCocoMetric', annotations, perturbed(annotations), classwise=True)
    assert own == evaluate('CocoMetric', annotations, perturbed(annotations), classwise=True)
    assert issubclass(METRICS.get('ExactCocoMetric'), CocoMetric)
