import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import sys
import warnings

import cv2
import fuzz_inputs
import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG
from mmdet.registry import DATASETS
from mmdet.structures.mask import encode_mask_results
from mmengine.registry import METRICS, init_default_scope
from pycocotools import mask as coco_mask
from test_datasets.test_annotations import FAULTS

from adn_mmdet import UserError
from adn_mmdet.config import load_config
from adn_mmdet.datasets.annotations import IGNORED, NO_SIZE, NOT_TRAINED_ON, OUTSIDE
from adn_mmdet.datasets.pickles import require_plain_pickles
from adn_mmdet.datasets.preparation import prepare_data


@pytest.fixture(scope='module')
def demo():
    return load_config(DEMO_CONFIG)


@pytest.fixture
def cfg(demo, shapes, tmp_path):
    """The demo on data of its own."""
    shutil.copytree(shapes, tmp_path / 'data')
    cfg = copy.deepcopy(demo)
    cfg.work_dir = str(tmp_path / 'run')
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{tmp_path}/data/'
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = str(file_of(tmp_path, 'val'))
    init_default_scope('mmdet')
    return cfg


def file_of(root, split):
    return root / 'data' / 'annotations' / f'instances_{split}.json'


@contextlib.contextmanager
def edited(root, split):
    """The content of an annotation file, written back."""
    content = json.loads(file_of(root, split).read_text())
    yield content
    file_of(root, split).write_text(json.dumps(content))


def warnings_of(cfg, *splits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        prepare_data(cfg, *splits)
    return [str(warning.message) for warning in caught if 'Deprecat' not in warning.category.__name__]


def broken(content, changes):
    """Change the second annotation as a fault of test_annotations does, sizes fitted; return its image's index."""
    annotation = content['annotations'][1]
    index = annotation['image_id'] - 1
    annotation.update(json.loads(json.dumps(changes).replace('[20, 30]', '[64, 64]').replace('600', '4096')))
    return index


def items(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        built = DATASETS.build(dataset)
    return [built[index] for index in range(len(built))]


def test_whole_data_is_left_as_it_is(cfg):
    before = copy.deepcopy(cfg.to_dict())
    assert warnings_of(cfg, 'train', 'val', 'test') == []
    assert cfg.to_dict() == before


@pytest.mark.parametrize('changes, reason', FAULTS)
def test_training_goes_on_without_what_cannot_be_used(cfg, tmp_path, changes, reason):
    """mmdet's data set then returns what it returns for a file that never had the object."""
    stock = copy.deepcopy(cfg.train_dataloader.dataset)
    with edited(tmp_path, 'train') as content:
        index = broken(content, changes)
    (message,) = warnings_of(cfg, 'train')
    assert f'1 with {reason} (id 2)' in message and '\n' not in message
    dataset = cfg.train_dataloader.dataset
    copied = list((tmp_path / 'run' / 'annotations').glob('instances_train_*.json'))
    assert len(copied) == (reason not in NOT_TRAINED_ON)
    assert dataset.ann_file == (str(copied[0]) if copied else stock.ann_file)
    with edited(tmp_path, 'train') as content:
        del content['annotations'][1]
    for config in (dataset, stock):
        config.pipeline = [step for step in config.pipeline if step.type != 'RandomFlip']
        config.update(indices=[index], serialize_data=False)
    (ours,), (whole,) = items(dataset), items(stock)
    ours, whole = ours['data_samples'].gt_instances, whole['data_samples'].gt_instances
    assert len(ours) == len(whole) and torch.equal(ours.bboxes.tensor, whole.bboxes.tensor)
    assert np.array_equal(ours.masks.to_ndarray(), whole.masks.to_ndarray())


@pytest.mark.parametrize('faster', [True, False], ids=['faster', 'pycocotools'])
def test_evaluation_is_that_of_a_file_without_them(cfg, tmp_path, monkeypatch, faster):
    if not faster:
        monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    whole = json.loads(file_of(tmp_path, 'val').read_text())
    results = [truth_as_predictions(whole, image) for image in whole['images']]
    found = []
    for changes, reason in [(None, None), *FAULTS[::6]]:
        with edited(tmp_path, 'val') as content:
            content['annotations'] = copy.deepcopy(whole['annotations'])
            if changes:
                broken(content, changes)
            else:
                del content['annotations'][1]
        run = copy.deepcopy(cfg)
        (message,) = warnings_of(run, 'test') or [None]
        assert (message is None) == (changes is None)
        assert (run.test_dataloader.dataset.ann_file == run.test_evaluator.ann_file) == (reason not in {None, *IGNORED})
        found.append(evaluate(run.test_evaluator, whole, results))
    assert found[0]['segm_mAP'] < 1
    assert all(row == found[0] for row in found[1:])


def truth_as_predictions(content, image):
    things = [thing for thing in content['annotations'] if thing['image_id'] == image['id']]
    boxes = np.array([thing['bbox'] for thing in things], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [coco_mask.decode(thing['segmentation']).astype(bool) for thing in things]
    return dict(
        img_id=image['id'],
        bboxes=boxes,
        scores=np.linspace(0.9, 0.5, len(things)),
        labels=np.array([thing['category_id'] - 1 for thing in things], int),
        masks=encode_mask_results(masks),
    )


def evaluate(evaluator, content, results):
    with contextlib.redirect_stdout(io.StringIO()):
        metric = METRICS.build(dict(evaluator) | {'type': 'ExactCocoMetric', '_scope_': 'mmdet'})
    metric.dataset_meta = dict(classes=[category['name'] for category in content['categories']])
    found = metric.compute_metrics([(dict(), copy.deepcopy(prediction)) for prediction in results])
    return {name: value for name, value in found.items() if value == value}


def test_one_warning_counts_by_reason(cfg, tmp_path):
    with edited(tmp_path, 'train') as content:
        for annotation in content['annotations'][:5]:
            annotation['bbox'][2] = 0
        content['annotations'][5]['bbox'][0] = 64
    (message,) = warnings_of(cfg, 'train')
    assert f'5 with {NO_SIZE} (id 1, 2, 3, …); 1 with {OUTSIDE} (id 6)' in message


@pytest.mark.parametrize('split', ['train', 'test'])
def test_data_that_cannot_be_used(cfg, tmp_path, split):
    name = 'train' if split == 'train' else 'val'
    original = file_of(tmp_path, name).read_text()

    def refused(message, **options):
        changed = copy.deepcopy(cfg)
        changed.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
        with pytest.raises(UserError, match=message) as error:
            prepare_data(changed, split)
        assert '\n' not in str(error.value)
        file_of(tmp_path, name).write_text(original)

    file_of(tmp_path, name).write_text(original[:300])
    refused(r'is not whole JSON \(.*line 1 column 301')
    with edited(tmp_path, name) as content:
        del content['annotations'][2]['category_id']
    refused(r'category_id .*annotations\[2\] \(id 3\) lacks it')
    with edited(tmp_path, name) as content:
        content['images'][2]['id'] = 1
    refused(r'1 ids occur more than once in images \(1\)')
    with edited(tmp_path, name) as content:
        for annotation in content['annotations']:
            del annotation['segmentation']
    refused('has no masks')
    with edited(tmp_path, name) as content:
        content['categories'] = []
    refused('has no category circle, rectangle, triangle')
    classes = f'{split}_dataloader__dataset__metainfo__classes'
    refused('no category square: .*circle, square; .*circle, rectangle, triangle', **{classes: ('circle', 'square')})
    refused('with its comma', **{classes: 'circle'})
    refused('num_classes is 3 in the model, but .* 2 classes', **{classes: ('circle', 'triangle')})
    (tmp_path / 'data' / name / '000002.png').unlink()
    refused('1 of .* images are missing, the first is .*000002.png')


def test_what_a_run_can_go_on_with(cfg, tmp_path):
    cfg.test_dataloader.dataset.metainfo.classes = ('triangle', 'circle', 'rectangle')
    with edited(tmp_path, 'val') as content:
        content['images'][1]['height'] = 65
        content['annotations'][0]['id'] = 0
        for annotation in content['annotations']:
            if annotation['image_id'] == 2:
                annotation['segmentation']['size'] = [65, 64]
                annotation['segmentation']['counts'] += coco_mask.encode(np.zeros((1, 1), np.uint8))['counts'].decode()
    messages = warnings_of(cfg, 'test')
    assert any('labels will carry wrong names' in message for message in messages)
    assert any('000002.png is 64×64 (height × width), not 65×64' in message for message in messages)
    assert any('an object with id 0 as missed' in message for message in messages)


def test_data_sets_inside_wrappers_and_classes_in_a_file(cfg, tmp_path):
    (tmp_path / 'names.txt').write_text('circle\nrectangle\ntriangle\n')
    dataset = cfg.train_dataloader.dataset
    dataset.metainfo.classes = str(tmp_path / 'names.txt')
    other = copy.deepcopy(cfg.val_dataloader.dataset)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[]))
    cfg.train_dataloader.dataset.dataset.datasets = [dataset, other]
    assert warnings_of(cfg, 'train') == []
    with edited(tmp_path, 'val') as content:
        content['annotations'][0]['segmentation'] = []
    assert len(warnings_of(cfg, 'train')) == 1
    first, second = cfg.train_dataloader.dataset.dataset.datasets
    assert first.ann_file == dataset.ann_file and 'run/annotations/instances_val_' in second.ann_file


def test_two_files_of_one_name_are_two_copies(cfg, tmp_path):
    """Each data set reads what is left of its own file."""
    shutil.copytree(tmp_path / 'data', tmp_path / 'other')
    for name in ('data', 'other'):
        path = tmp_path / name / 'annotations' / 'instances_train.json'
        content = json.loads(path.read_text())
        content['annotations'][0]['segmentation'] = []
        content['annotations'] = content['annotations'][: 5 if name == 'data' else 9]
        path.write_text(json.dumps(content))
    first, second = (copy.deepcopy(cfg.train_dataloader.dataset) for _ in range(2))
    second.data_root = f'{tmp_path}/other/'
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[first, second])
    assert len(warnings_of(cfg, 'train')) == 2
    files = [dataset.ann_file for dataset in cfg.train_dataloader.dataset.datasets]
    assert [len(json.loads(open(file).read())['annotations']) for file in files] == [4, 8]


def test_a_byte_order_mark_is_left_out(cfg, tmp_path):
    file = file_of(tmp_path, 'train')
    expected = [item['inputs'].sum() for item in items(copy.deepcopy(cfg.train_dataloader.dataset))]
    file.write_text(file.read_text(), encoding='utf-8-sig')
    assert warnings_of(cfg, 'train') == []
    assert [item['inputs'].sum() for item in items(cfg.train_dataloader.dataset)] == expected


class Crafted:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize('key', ['proposal_file', 'ann_file'])
def test_a_pickle_runs_nothing(cfg, tmp_path, key):
    dataset = cfg.train_dataloader.dataset
    dataset[key] = 'x.pkl'
    path = tmp_path / 'data' / 'x.pkl'
    for content in (pickle.dumps([Crafted(tmp_path / 'made')]), b'', b'no pickle'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f'{key} .*x.pkl cannot be read, or could run code'):
            prepare_data(cfg, 'train')
    assert not (tmp_path / 'made').exists()
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps({'a.png': dict(bboxes=np.ones((2, 4)), scores=np.float32(1))}, protocol))
        require_plain_pickles(dataset)
    dataset.data_root = 'http://host/'
    with pytest.raises(UserError, match='download it, and name the local file'):
        require_plain_pickles(dataset)


def test_other_formats_are_not_looked_into(cfg, tmp_path):
    file_of(tmp_path, 'train').write_text('not COCO')
    cfg.train_dataloader.dataset.type = 'LVISV1Dataset'
    assert warnings_of(cfg, 'train') == []
    cfg.train_dataloader.dataset.type = 'mmdet.CocoDataset'
    with pytest.raises(UserError, match='is not whole JSON'):
        prepare_data(cfg, 'train')


def test_an_evaluators_file_that_is_missing(cfg, tmp_path):
    cfg.test_evaluator.ann_file = str(tmp_path / 'gone.json')
    with pytest.raises(UserError, match='there is no annotation file .*gone.json: check test_evaluator'):
        prepare_data(cfg, 'test')


def test_a_copy_that_cannot_be_written(cfg, tmp_path):
    (tmp_path / 'run').write_text('a file')
    with edited(tmp_path, 'train') as content:
        content['annotations'][0]['segmentation'] = []
    with pytest.raises(UserError, match='cannot write .*run/annotations/.*give another --work-dir'):
        prepare_data(cfg, 'train')


def test_damaged_files_are_refused_or_can_be_used(tmp_path):
    outcomes = fuzz_inputs.annotations(80, seed=0, folder=tmp_path)
    assert outcomes.keys() == {'refused', 'used'}


def test_the_largest_ids_change_no_number(tmp_path):
    found = []
    for change in (lambda number: number, lambda number: 2**63 - number):
        content = fuzz_inputs.annotation_file()
        for entry in [*content['images'], *content['annotations']]:
            entry['id'] = change(entry['id'])
        for annotation in content['annotations']:
            annotation['image_id'] = change(annotation['image_id'])
        (tmp_path / 'fuzzed.json').write_text(json.dumps(content))
        for number in (1, 2, 3):
            cv2.imwrite(str(tmp_path / f'{number}.png'), np.zeros((48, 64, 3), np.uint8))
        cfg = fuzz_inputs.data_config(tmp_path, 'test')
        assert warnings_of(cfg, 'test') == []
        found.append(fuzz_inputs.load_and_evaluate(cfg, 'test'))
    assert found[0]['coco/bbox_mAP'] == found[0]['coco/segm_mAP'] == 1
    assert str(found[0]) == str(found[1])  # NaN is not equal to itself
