import contextlib
import copy
import io
import json
import math
import os
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from benchmarks.coco_eval import build_metric, perturbed
from mmdet.evaluation import CocoMetric, CocoVideoMetric, DumpDetResults
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from packaging.requirements import Requirement
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import ROOT

from adn_mmdet import UserError
from adn_mmdet.evaluation import coco_metric

REAL = Path(os.environ.get('ADN_TEST_DATA', 'nowhere')) / 'coco-mini/annotations'


@pytest.fixture(scope='module')
def annotations(shapes):
    return shapes / 'annotations' / 'instances_val.json'


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


def same_to_1e12(annotations, predictions, folder):
    found = evaluate(build_metric(annotations, outfile_prefix=str(folder / 'found')), predictions)
    assert 0 < found['bbox_mAP'] < 0.9 and 0 < found['segm_mAP'] < 0.9
    for metric in ('bbox', 'segm'):
        own = [value for name, value in found.items() if name.startswith(metric)]
        np.testing.assert_allclose(
            own, pycocotools_numbers(annotations, folder / f'found.{metric}.json', metric), rtol=0, atol=1e-12
        )


def test_same_as_pycocotools_to_1e12(annotations, backend, tmp_path):
    same_to_1e12(annotations, perturbed(annotations, copies=3), tmp_path)


def test_groups_of_categories_change_nothing(annotations, backend, monkeypatch):
    metric, predictions = build_metric(annotations, classwise=True), list(perturbed(annotations, copies=3))
    together = evaluate(metric, predictions)
    monkeypatch.setattr(coco_metric, 'AT_ONCE', 1)
    assert [labels.tolist() for labels in metric._labels_at_once(predictions, 'bbox')] == [[0], [1], [2]]
    np.testing.assert_equal(evaluate(build_metric(annotations, classwise=True), predictions), together)


@pytest.mark.skipif(not REAL.is_dir(), reason='needs COCO: name the folder that holds coco-mini in ADN_TEST_DATA')
def test_same_as_pycocotools_to_1e12_on_real_annotations(tmp_path):
    pytest.importorskip('faster_coco_eval')
    annotations = REAL / 'instances_val2017.json'
    predictions = list(perturbed(annotations, copies=6))
    assert sum(len(image['labels']) for image in predictions) > 10_000
    assert max(len(image['labels']) for image in predictions) > 100  # where AP at 100 detections is another number
    same_to_1e12(annotations, predictions, tmp_path)


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


def rounded_by_mmdet(annotations, **kwargs):
    numbers = evaluate(build_metric(annotations, 'CocoMetric', **kwargs), perturbed(annotations))
    return {name: value for name, value in numbers.items() if not name.endswith('_copypaste')}


def assert_rounds_to(exact, rounded):
    assert exact.keys() == rounded.keys()
    for key, value in rounded.items():
        assert round(exact[key], 3) == value or (math.isnan(exact[key]) and (value == -1 or math.isnan(value))), key
    assert any(exact[key] != rounded[key] for key in exact)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(metric='bbox', metric_items=['mAP_50', 'AR@300', 'mAP']),
        dict(metric='proposal'),
        dict(metric='proposal', metric_items=['AR@1000', 'AR_s@1000']),
        dict(metric=['bbox', 'segm'], metric_items=['mAP_s'], iou_thrs=np.array([0.6, 0.7])),
        dict(metric='segm', metric_items=['mAP'], iou_thrs=np.array([0.5])),
    ],
)
def test_every_metric_is_mmdets_unrounded(annotations, backend, kwargs):
    exact = evaluate(build_metric(annotations, **kwargs), perturbed(annotations))
    assert_rounds_to(exact, rounded_by_mmdet(annotations, **kwargs))


def test_iou_thresholds_in_any_form(annotations):
    forms = [[0.5], (0.5,), 0.5, np.array([0.5])]
    predictions = list(perturbed(annotations))
    first, *others = [evaluate(build_metric(annotations, iou_thrs=form), predictions) for form in forms]
    assert first['bbox_mAP'] == first['bbox_mAP_50'] and math.isnan(first['bbox_mAP_75'])
    for other in others:
        np.testing.assert_equal(other, first)


def test_classes_are_unrounded_and_each_metric_has_its_own(annotations, backend):
    only_mean = dict(metric_items=['mAP'], classwise=True)
    one = evaluate(build_metric(annotations, metric='bbox', **only_mean), perturbed(annotations))
    assert_rounds_to(one, rounded_by_mmdet(annotations, metric='bbox', **only_mean))
    both = evaluate(build_metric(annotations, **only_mean), perturbed(annotations))
    for metric in ('bbox', 'segm'):
        classes = [both[f'{metric}_{name}_precision'] for name in ('circle', 'rectangle', 'triangle')]
        assert both[f'{metric}_mAP'] == pytest.approx(np.mean(classes), abs=1e-12)
    assert both['bbox_circle_precision'] == one['circle_precision'] != both['segm_circle_precision']


@pytest.mark.parametrize('numbers', [(10,), (2, 1), (1, 3, 10, 100), (100, 300, 500, 1000)])
def test_recalls_have_the_right_name_whatever_their_number(annotations, backend, numbers):
    predictions = list(perturbed(annotations, copies=3))
    found = evaluate(build_metric(annotations, proposal_nums=numbers), predictions)
    most = max(numbers)
    recalls = {f'AR@{number}' for number in numbers} | {f'AR_{size}@{most}' for size in 'sml'}
    assert {name.removeprefix('bbox_') for name in found if name.startswith('bbox_AR')} == recalls
    assert found['bbox_mAP'] == evaluate(build_metric(annotations), predictions)['bbox_mAP']
    for number in numbers:
        alone = evaluate(build_metric(annotations, proposal_nums=(number,) * 3), predictions)
        assert found[f'bbox_AR@{number}'] == pytest.approx(alone[f'bbox_AR@{number}'], abs=1e-12)
        assert found[f'bbox_AR_s@{most}'] >= alone[f'bbox_AR_s@{number}']
    assert len({found[f'bbox_AR@{number}'] for number in numbers if number < 4}) == sum(n < 4 for n in numbers)


def test_truth_from_the_data_set_is_unrounded_from_the_first_evaluation_on(annotations, backend):
    content = json.loads(annotations.read_text())
    truths = {image['id']: dict(img_id=image['id'], width=64, height=64, anns=[]) for image in content['images']}
    for thing in content['annotations']:
        x, y, width, height = thing['bbox']
        anns = truths[thing['image_id']]['anns']
        anns.append(dict(bbox=[x, y, x + width, y + height], bbox_label=thing['category_id'] - 1))
    results = [(truths[prediction['img_id']], prediction) for prediction in perturbed(annotations)]
    metric = build_metric(annotations, metric='bbox')
    from_file = metric.compute_metrics(results)
    from_data = build_metric(annotations, metric='bbox', ann_file=None)
    for _ in range(2):
        found = from_data.compute_metrics(results)
        for name in ('mAP', 'mAP_50', 'mAP_75', 'AR@100'):  # sizes are those of boxes, without a file
            assert found[f'bbox_{name}'] == pytest.approx(from_file[f'bbox_{name}'], abs=1e-12)
        assert found['bbox_mAP'] != round(found['bbox_mAP'], 3)


@pytest.mark.parametrize('shift', [2**63, 2**53 + 2**64, -3, -(2**70)])
def test_ids_of_any_size_change_nothing(annotations, backend, tmp_path, shift):
    content = json.loads(annotations.read_text())
    for table in ('images', 'categories', 'annotations'):
        for row in content[table]:
            row['id'] += shift
    for thing in content['annotations']:
        thing['image_id'] += shift
        thing['category_id'] += shift
    (tmp_path / 'shifted.json').write_text(json.dumps(content))
    predictions = list(perturbed(annotations))
    shifted = [prediction | {'img_id': prediction['img_id'] + shift} for prediction in predictions]
    found = evaluate(build_metric(tmp_path / 'shifted.json'), shifted)
    np.testing.assert_equal(found, evaluate(build_metric(annotations), predictions))


def test_images_that_were_left_out_are_not_counted_as_missed(annotations, backend, tmp_path):
    content = json.loads(annotations.read_text())
    predictions = list(perturbed(annotations))
    content['images'] = content['images'][:2]
    tested = [image['id'] for image in content['images']]
    content['annotations'] = [thing for thing in content['annotations'] if thing['image_id'] in tested]
    (tmp_path / 'two.json').write_text(json.dumps(content))
    two = [prediction for prediction in predictions if prediction['img_id'] in tested]
    found = evaluate(build_metric(annotations), two)
    np.testing.assert_equal(found, evaluate(build_metric(tmp_path / 'two.json'), two))
    assert found['bbox_mAP'] > 0.2


def test_what_cannot_be_evaluated_is_refused(annotations):
    predictions = list(perturbed(annotations))
    with pytest.raises(UserError, match=r'metric_items should be some of mAP, .*AR_l@7, but got AR@1000'):
        build_metric(annotations, metric_items=['mAP', 'AR@1000'], proposal_nums=(1, 7))
    with pytest.raises(UserError, match='proposal_fast .* use proposal'):
        build_metric(annotations, metric=['bbox', 'proposal_fast'])
    with pytest.raises(UserError, match='no image was tested'):
        evaluate(build_metric(annotations), [])
    with pytest.raises(
        UserError, match='annotations lack 1 tested images or classes, the first is image id 99: ann_file of'
    ):
        evaluate(build_metric(annotations), [*predictions[1:], predictions[0] | {'img_id': 99}])
    metric = build_metric(annotations)
    metric.dataset_meta = dict(classes=['circle', 'square'])
    with pytest.raises(UserError, match='the first is class square'):
        evaluate(metric, predictions)
    for prediction in predictions:
        del prediction['masks']
    with pytest.raises(UserError, match='no masks: leave segm out'):
        evaluate(build_metric(annotations), predictions)


def test_files_that_were_asked_for(annotations, tmp_path):
    metric = build_metric(annotations, format_only=True, outfile_prefix=str(tmp_path / 'found'))
    assert evaluate(metric, perturbed(annotations)) == {}
    assert {path.name for path in tmp_path.iterdir()} == {'found.bbox.json', 'found.segm.json'}


def test_what_stands_for_mmdets_metric_is_replaced_and_said_so(monkeypatch):
    said = []
    monkeypatch.setattr(coco_metric, 'print_log', lambda message, logger: said.append(message))
    init_default_scope('mmdet')
    for kind in ('CocoMetric', 'mmdet.CocoMetric', CocoMetric):
        for wrap in (lambda metric: metric, lambda metric: [metric], lambda metric: dict(metrics=(metric,))):
            coco_metric.use_exact_metrics(wrap(metric := ConfigDict(type=kind)))
            assert metric.type == 'ExactCocoMetric'
    assert len(said) == 9 and all(message.startswith('CocoMetric is replaced by') for message in said)
    others = [dict(type='LVISMetric'), dict(type=CocoVideoMetric), DumpDetResults('x.pkl'), dict(type='no such metric')]
    before = copy.deepcopy(others[:2])
    coco_metric.use_exact_metrics(others)
    assert others[:2] == before and len(said) == 9
    coco_metric.use_exact_metrics([CocoMetric()])
    assert len(said) == 10 and 'rounds to 3 decimals' in said[-1]


def test_setup_pins_the_evaluation_whose_arrays_are_read():
    (line,) = re.findall(r"'(faster-coco-eval[^']*)'", (ROOT / 'setup.py').read_text())
    pin = Requirement(line).specifier
    assert {part.operator for part in pin} == {'>=', '<'} and pin.contains(version('faster-coco-eval'))
