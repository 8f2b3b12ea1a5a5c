import sys

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as rle

from adn_mmdet import UserError, to_supervision

supervision = pytest.importorskip('supervision', reason='the extra `supervision` is not installed')
CLASSES = ('circle', 'rectangle', 'triangle')
MASK = np.zeros((40, 60), bool)
MASK[8:20, 10:30] = True


def prediction(left=10.0, with_mask=True, **facts):
    """Two objects, as an inferencer's dict."""
    found = dict(bboxes=[[left, 8, left + 20, 20], [2.5, 1, 4, 4]], scores=[0.875, 0.25], labels=[2, 0])
    if with_mask:
        masks = [rle.encode(np.asfortranarray(mask, np.uint8)) for mask in (MASK, ~MASK)]
        found['masks'] = [mask | {'counts': mask['counts'].decode()} for mask in masks]
    return found | facts


def test_every_field_arrives():
    found = to_supervision(prediction(skip='TTFF', point='TTFF@640', ms=12.5), CLASSES)
    assert found.xyxy.tolist() == [[10, 8, 30, 20], [2.5, 1, 4, 4]]
    assert (found.confidence.tolist(), found.class_id.tolist()) == ([0.875, 0.25], [2, 0])
    assert found.mask.dtype == bool and np.array_equal(found.mask, [MASK, ~MASK])
    assert {name: values.tolist() for name, values in found.data.items()} == dict(
        skip=['TTFF'] * 2, point=['TTFF@640'] * 2, ms=[12.5] * 2, class_name=['triangle', 'circle']
    )
    (certain,) = found[found.confidence > 0.5]
    assert (certain[2], certain[5]['skip'], certain[5]['class_name']) == (0.875, 'TTFF', 'triangle')


def test_results_and_data_samples_are_as_predictions():
    expected = to_supervision(prediction(skip='TTFF', ms=2.0), CLASSES)
    assert to_supervision(dict(predictions=[prediction(skip='TTFF', ms=2.0)]), CLASSES) == expected
    found = {name: torch.tensor(value) for name, value in prediction(with_mask=False).items()}
    sample = DetDataSample(metainfo=dict(skip='TTFF', ms=2.0))
    sample.pred_instances = InstanceData(**found, masks=torch.from_numpy(np.stack([MASK, ~MASK])))
    assert to_supervision(sample, CLASSES) == expected


def test_nothing_found_and_no_masks_classes_or_depth():
    empty = to_supervision(dict(bboxes=[], scores=[], labels=[], masks=[], skip='TTTT', ms=1.0), CLASSES)
    assert empty.xyxy.shape == (0, 4) and empty.is_empty() and len(empty.data['skip']) == 0
    boxes = to_supervision(prediction(with_mask=False, skip=None, point='', ms=1.0))
    assert boxes.mask is None and boxes.data.keys() == {'point', 'ms'}
    assert len(supervision.Detections.merge([empty, boxes])) == 2


def test_an_object_that_moves_is_one_object_and_crosses_a_line_once():
    trackers = pytest.importorskip('trackers', reason='trackers, of the example of docs/results.md, is not installed')
    tracker = trackers.ByteTrackTracker()
    line = supervision.LineZone(supervision.Point(100, 0), supervision.Point(100, 40))
    depths, ids = [], set()
    for step in range(30):
        found = to_supervision(prediction(60.0 + 2 * step, skip='TTFF' if step % 2 else 'FFFF', ms=1.0), CLASSES)
        found = tracker.update(found[found.confidence > 0.5])
        line.trigger(found)
        depths += found.data['skip'].tolist()
        ids |= {one for one in found.tracker_id.tolist() if one >= 0}
    assert len(ids) == 1 and line.in_count + line.out_count == 1
    assert depths == ['FFFF', 'TTFF'] * 15


@pytest.mark.parametrize(
    ('result', 'message'),
    [
        (dict(predictions=[]), 'there are 0 predictions'),
        (dict(predictions=[prediction()] * 2), 'there are 2 predictions: convert them one by one'),
        (dict(panoptic_seg=1), 'takes a prediction, with bboxes, scores and labels, but got a dict'),
        (DetDataSample(), 'but got a DetDataSample'),
        ([prediction()], 'but got a list'),
        (prediction(labels=[3, 0]), 'label 3 has no name among 3 classes'),
    ],
)
def test_what_is_no_prediction(result, message):
    with pytest.raises(UserError, match=message):
        to_supervision(result, CLASSES)


def test_without_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(UserError, match=r"needs supervision .*: pip install -e '\.\[supervision\]'"):
        to_supervision(prediction())
