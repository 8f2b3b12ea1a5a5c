import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.coco_eval import build_metric, perturbed
from mmdet.evaluation import CocoMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import ROOT

REAL = Path(os.environ.get('ADN_TEST_DATA', ROOT.parent / 'shared/data')) / 'coco-mini/annotations'


@pytest.fixture(scope='module')
def annotations(shapes):
    return shapes / 'annotations' / 'instances_val.json'


@pytest.fixture(params=['faster-coco-eval', 'pycocotools'])
def backend(request, monkeypatch):
    if request.param == 'pycocotools':
        monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)  # as if it were not installed
    else:
        pytest.importorskip('faster_coco_eval')
    return request.param


def evaluate(metric, predictions):
    return metric.compute_metrics([(dict(), prediction) for prediction in predictions])


def pycocotools_numbers(annotations, detections, metric):
    """What pycocotools alone makes of a file of detections: its 12 numbers, NaN for its -1."""
    detections = json.loads(Path(detections).read_text())
    if metric == 'segm':
        for detection in detections:
            del detection['bbox']  # as mmdet does: sizes are those of the masks
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        coco_eval = COCOeval(truth, truth.loadRes(detections), metric)
        coco_eval.params.maxDets = [100, 300, 1000]
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return [number if number >= 0 else math.nan for number in coco_eval.stats]


def same_to_the_bit(annotations, predictions, folder):
    found = evaluate(build_metric(annotations, outfile_prefix=str(folder / 'found')), predictions)
    assert 0 < found['bbox_mAP'] < 0.9 and 0 < found['segm_mAP'] < 0.9
    for metric in ('bbox', 'segm'):
        own = [value for name, value in found.items() if name.startswith(metric)]
        np.testing.assert_array_equal(own, pycocotools_numbers(annotations, folder / f'found.{metric}.json', metric))


def test_same_as_pycocotools_to_the_bit(annotations, backend, tmp_path):
    same_to_the_bit(annotations, perturbed(annotations, copies=3), tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f'there is no COCO at {REAL}: name its parent in ADN_TEST_DATA')
def test_same_as_pycocotools_to_the_bit_on_real_annotations(tmp_path):
    pytest.importorskip('faster_coco_eval')
    annotations = REAL / 'instances_val2017.json'
    predictions = list(perturbed(annotations, copies=6))
    assert sum(len(image['labels']) for image in predictions) > 10_000
    assert max(len(image['labels']) for image in predictions) > 100  # where AP at 100 detections is another number
    same_to_the_bit(annotations, predictions, tmp_path)


def test_same_as_mmdet_but_unrounded(annotations):
    exact = evaluate(build_metric(annotations), perturbed(annotations))
    rounded = evaluate(build_metric(annotations, 'CocoMetric'), perturbed(annotations))
    assert exact['bbox_mAP'] != round(exact['bbox_mAP'], 3)
    for key, value in rounded.items():
        if key.endswith('_copypaste'):
            continue
        assert round(exact[key], 3) == value or (value == -1 and math.isnan(exact[key])), key


def test_annotations_are_read_once(annotations, backend, tmp_path):
    copied = tmp_path / 'annotations.json'
    copied.write_bytes(annotations.read_bytes())
    metric = build_metric(copied)
    copied.unlink()
    first, second = (evaluate(metric, perturbed(annotations)) for _ in range(2))
    np.testing.assert_equal(first, second)


def test_no_detections_at_all(annotations, backend):
    empty = dict(img_id=1, bboxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, int), masks=[])
    exact = evaluate(build_metric(annotations), [empty])
    assert len(exact) == 24
    assert exact['bbox_mAP'] == exact['segm_mAP'] == exact['bbox_AR@100'] == 0
    assert math.isnan(exact['bbox_mAP_l'])  # no object of that size


def test_what_it_does_not_evaluate_is_left_to_mmdet(annotations):
    own, stock = (build_metric(annotations, name, classwise=True) for name in ('ExactCocoMetric', 'CocoMetric'))
    assert evaluate(own, perturbed(annotations)) == evaluate(stock, perturbed(annotations))
    assert isinstance(own, CocoMetric)
