import copy

import numpy as np
import pytest
from benchmarks.coco_eval import build_metric, perturbed

from adn_mmdet.datasets.parsed import as_coco
from adn_mmdet.evaluation.resampling import draws

NUM_DRAWS = 12


@pytest.fixture
def metric(shapes):
    metric = build_metric(shapes / 'annotations' / 'instances_val.json')
    metric.num_draws = NUM_DRAWS
    return metric


def detections(shapes, copies=3):
    """Detections with scores of their own: copies of an image keep their order only where none are equal."""
    predictions = list(perturbed(shapes / 'annotations' / 'instances_val.json', copies))
    rng = np.random.default_rng(1)
    return [prediction | {'scores': rng.uniform(size=len(prediction['scores']))} for prediction in predictions]


def resample(metric, predictions):
    metric.compute_metrics([({}, prediction) for prediction in predictions])
    return metric.resampled


def drawn_anew(metric, predictions, counts, kind):
    """The AP of a test set that really holds an image as often as it was drawn, by the evaluation itself."""
    other = copy.deepcopy(metric)
    other.num_draws = 0
    copies = []
    images, things = [], []
    for prediction, count in zip(sorted(predictions, key=lambda prediction: prediction['img_id']), counts):
        for _ in range(count):
            number = 1000 + len(images)
            images.append(metric._coco_api.imgs[prediction['img_id']] | {'id': number})
            things += [thing | {'image_id': number} for thing in metric._coco_api.imgToAnns[prediction['img_id']]]
            copies.append(prediction | {'img_id': number})
    truth = metric._coco_api.dataset
    numbered = [thing | {'id': number} for number, thing in enumerate(things, 1)]
    other._coco_api = as_coco(truth | {'images': images, 'annotations': numbered})
    other.img_ids = None
    return other.compute_metrics([({}, prediction) for prediction in copies])[f'{kind}_mAP']


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_same_as_test_sets_that_are_really_drawn(shapes, metric, backend, kind):
    crowd(metric)
    predictions = detections(shapes)
    resampled = resample(metric, predictions)[kind + '_mAP']
    counts = draws(len(predictions), NUM_DRAWS)
    slow = [drawn_anew(metric, predictions, row, kind) for row in counts]
    np.testing.assert_allclose(resampled, slow, rtol=0, atol=1e-12)
    assert len(set(resampled)) > NUM_DRAWS // 2


def crowd(metric):
    """Let some objects be crowds, and one class have an object on the first image only: some draws have none of it."""
    things = metric._coco_api.dataset['annotations']
    for number, thing in enumerate(things):
        of_class = thing['category_id'] == 3 and thing['image_id'] != things[0]['image_id']
        thing['iscrowd'] = int(number % 5 == 0 or of_class)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_all_images_once_is_the_ap_itself(shapes, metric, backend, kind, monkeypatch):
    monkeypatch.setattr('adn_mmdet.evaluation.coco_metric.draws', lambda images, number: np.ones((1, images), int))
    crowd(metric)
    predictions = list(perturbed(shapes / 'annotations' / 'instances_val.json', 60))  # equal scores, and more than 100
    ap = metric.compute_metrics([({}, prediction) for prediction in predictions])[f'{kind}_mAP']
    np.testing.assert_allclose(metric.resampled[f'{kind}_mAP'], [ap], rtol=0, atol=1e-12)
    assert max(np.bincount(prediction['labels']).max() for prediction in predictions) > 100


def test_same_predictions_have_the_same_ap_in_every_draw(shapes, metric):
    predictions = detections(shapes)
    first = resample(metric, predictions)
    other = resample(metric, predictions[::-1])  # images in another order
    for name in ('bbox_mAP', 'segm_mAP'):
        assert np.ptp(first[name]) > 0
        np.testing.assert_array_equal(first[name] - other[name], 0)


def test_what_is_drawn_is_the_same_everywhere():
    counts = draws(5, 3)
    assert counts.tolist() == [[1, 0, 0, 3, 1], [1, 1, 1, 1, 1], [2, 1, 1, 0, 1]]
    assert (draws(1000, 50).sum(axis=1) == 1000).all()


def test_nothing_is_drawn_unless_asked_for(shapes):
    metric = build_metric(shapes / 'annotations' / 'instances_val.json')
    assert not resample(metric, detections(shapes))


def test_no_object_at_all_has_no_ap(metric, shapes):
    for thing in metric._coco_api.dataset['annotations']:
        thing['iscrowd'] = 1
    assert np.isnan(resample(metric, detections(shapes))['bbox_mAP']).all()
