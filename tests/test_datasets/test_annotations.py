import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from adn_mmdet import UserError
from adn_mmdet.datasets import annotations as module
from adn_mmdet.datasets.annotations import check_classes, read_coco, require_coco, sort_out

NAN, INF = float('nan'), float('inf')
TRIANGLE = [[1, 1, 9, 1, 9, 9]]


def file_of(*annotations):
    """Two images of 20×30 (height × width), and annotations that are whole but for what is given."""
    whole = dict(image_id=1, category_id=7, bbox=[1, 1, 8, 8], area=32.0, iscrowd=0, segmentation=TRIANGLE)
    return {
        'images': [{'id': number, 'file_name': f'{number}.png', 'height': 20, 'width': 30} for number in (1, 2)],
        'annotations': [{**whole, 'id': 10 + index, **changes} for index, changes in enumerate(annotations)],
        'categories': [{'id': 7, 'name': 'cat'}, {'id': 3, 'name': 'dog'}],
    }


def without(content, table, index, key):
    content = copy.deepcopy(content)
    del content[table][index][key]
    return content


COCO = json.dumps(file_of({}))


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'is empty: download it again'),
        (COCO[:30], r'is not whole JSON \(.*line 1 column'),
        ('<html>', r'is not whole JSON \(.*char 0'),
        ('[]', 'holds no JSON object: download it again'),
        ('{}', 'is not in COCO format: it lacks annotations, categories, images'),
        ('{"images": [], "annotations": []}', 'it lacks categories'),
    ],
    ids=['empty', 'truncated', 'html', 'list', 'object', 'keys'],
)
def test_files_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(UserError, match=f'a.json {message}|a.json.*{message}'):
        read_coco(path)
    for content, message in (
        (COCO.encode('utf-16'), 'is not UTF-8 text'),
        (b'[' * 100_000, 'nested too deeply'),
        (COCO.replace('32.0', '9' * 5000).encode(), 'is not whole JSON'),
        (COCO.replace('1.png', '\\u0000').encode(), 'null byte or a lone surrogate'),
        (COCO.replace('cat', '\\ud800').encode(), 'null byte or a lone surrogate'),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            read_coco(path)
        assert '\n' not in str(error.value)
    path.write_text(COCO, encoding='utf-8-sig')
    assert read_coco(path) == file_of({})
    path.write_text(COCO)
    assert read_coco(path) == file_of({})


@pytest.mark.parametrize(
    'content, message',
    [
        (
            without(file_of({}, {}), 'annotations', 1, 'bbox'),
            r'1 of 2 annotations .* bbox .*annotations\[1\] \(id 11\)',
        ),
        (
            without(file_of({}), 'annotations', 0, 'id'),
            r'no valid id \(a whole number, .*\): annotations\[0\] lacks it',
        ),
        (without(file_of({}), 'images', 1, 'file_name'), r'1 of 2 images .* file_name .*images\[1\] \(id 2\)'),
        (without(file_of({}), 'annotations', 0, 'iscrowd'), r'iscrowd \(0 or 1\)'),
        (file_of({}, {'id': '12'}), r"annotations\[1\] has '12'"),
        *[(file_of({}, {'id': number}), 'no valid id') for number in (-1, 2**63, True, 1.0, 10**400)],
        *[(file_of({}, {'image_id': number}), 'no valid image_id') for number in (-1, 2**63, True, '1')],
        (file_of({'bbox': [True, 1, 5, 5]}), 'no valid bbox'),
        (file_of({'area': True}), 'no valid area'),
        (file_of({}) | {'images': [{'id': 1, 'file_name': 'a', 'height': True, 'width': 5}]}, 'no valid height'),
        (file_of({}) | {'images': [{'id': 1, 'file_name': 'a', 'height': 2**21, 'width': 5}]}, '1 to 2.20'),
        (file_of({}) | {'images': [{'id': 1, 'file_name': 'a', 'height': 2**16, 'width': 2**16}]}, 'more than 2.30'),
        (file_of({'bbox': [1, 2, 3]}), r'no valid bbox \(\[x, y, width, height\]\): .* has \[1, 2, 3\]'),
        (file_of({'bbox': [1, 2, 3, None]}), r'has \[1, 2, 3, None\]'),
        (file_of({'bbox': [1, 2, 3, '4']}), 'no valid bbox'),
        (file_of({'area': None}), r'no valid area \(a number\): .* has None'),
        (file_of({}) | {'images': [{'id': 1, 'file_name': 'a', 'height': 0, 'width': 5}]}, 'height .*1 to'),
        (file_of({}) | {'images': {'1': 'a.png'}}, 'images should be a list of objects'),
        (file_of({}) | {'annotations': [5]}, 'annotations should be a list of objects'),
        (file_of({}) | {'images': []}, 'lists no images'),
        (file_of({}, {'id': 10}, {'id': 10}), r'1 ids occur more than once in annotations \(10\)'),
        (file_of({}) | {'images': file_of()['images'] * 2}, r'2 ids occur more than once in images \(1, 2\)'),
        (file_of({}) | {'categories': file_of()['categories'] * 2}, 'more than once in categories'),
    ],
)
def test_entries_that_are_not_whole_are_named(tmp_path, content, message):
    require_coco(file_of({}, {}), tmp_path, is_evaluated=True)
    with pytest.raises(UserError, match=message):
        require_coco(content, tmp_path, is_evaluated=True)


def test_crowds_need_no_mark_in_training(tmp_path):
    require_coco(without(file_of({}), 'annotations', 0, 'iscrowd'), tmp_path, is_evaluated=False)


def test_classes(tmp_path):
    content = file_of({})
    assert check_classes(content, tmp_path, ('cat', 'dog')) is None
    assert check_classes(content, tmp_path, ['dog']) is None
    warning = check_classes(content, tmp_path, ('dog', 'cat'))
    assert warning and 'classes are dog, cat' in warning and 'categories are cat, dog' in warning
    with pytest.raises(UserError, match=r'has no category bird: .*classes are cat, bird; .*categories are cat, dog'):
        check_classes(content, tmp_path, ('cat', 'bird'))
    with pytest.raises(UserError, match=r"the text 'cat': write a tuple, \('cat',\) with its comma"):
        check_classes(content, tmp_path, 'cat')
    content['categories'][1]['name'] = 'cat'
    with pytest.raises(UserError, match='occurs twice'):
        check_classes(content, tmp_path, ('cat',))


FAULTS = [
    ({'image_id': 99}, module.NO_IMAGE),
    ({'category_id': 99}, module.NO_CATEGORY),
    ({'bbox': [1, 1, NAN, 5]}, module.NOT_FINITE),
    ({'bbox': [1, 1, INF, 5]}, module.NOT_FINITE),
    ({'bbox': [NAN, 1, 5, 5]}, module.NOT_FINITE),
    ({'bbox': [1, 1, 10**400, 5]}, module.NOT_FINITE),
    ({'area': NAN}, module.NOT_FINITE),
    ({'area': 10**400}, module.NOT_FINITE),
    ({'bbox': [1, 1, 0, 5]}, module.NO_SIZE),
    ({'bbox': [1, 9, 5, -5]}, module.NO_SIZE),
    ({'bbox': [300, 1, 5, 5]}, module.OUTSIDE),
    ({'bbox': [1, -5, 5, 5]}, module.OUTSIDE),
    ({'segmentation': None}, module.NO_MASK),
    ({'segmentation': []}, module.NO_MASK),
    ({'segmentation': 'abc'}, module.NO_MASK),
    ({'segmentation': True}, module.NO_MASK),
    ({'segmentation': [[]]}, module.POLYGON),
    ({'segmentation': [[1, 1, 9, 9]]}, module.POLYGON),
    ({'segmentation': [[1, 1, 9, 1, 9, 9, 1]]}, module.POLYGON),
    ({'segmentation': [[1, 1, NAN, 1, 9, 9]]}, module.POLYGON),
    ({'segmentation': [[1, 1, 1e9, 1, 9, 9]]}, module.POLYGON),
    ({'segmentation': [[1, 1, 'a', 1, 9, 9]]}, module.POLYGON),
    ({'segmentation': [[1, 1, 10**400, 1, 9, 9]]}, module.POLYGON),
    ({'segmentation': [[True, 1, 9, 1, 9, 9]]}, module.POLYGON),
    ({'segmentation': ['abcdef']}, module.POLYGON),
    ({'segmentation': [1, 1, 9, 1, 9, 9]}, module.POLYGON),
    ({'segmentation': {'size': [20, 30]}}, module.RLE),
    ({'segmentation': {'counts': [600]}}, module.RLE),
    ({'segmentation': {'size': 'ab', 'counts': [600]}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': []}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': [100, 50]}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': [100, 501]}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': [100, -50, 550]}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': [100, 'a']}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': [100.5, 499.5]}}, module.RLE),
    ({'segmentation': {'size': [20.0, 30.0], 'counts': [100, 500]}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': [True, 599]}}, module.RLE),
    ({'segmentation': {'size': [30, 20], 'counts': [100, 500]}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': ''}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': 'garbage!!'}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': 'oooooooo'}}, module.RLE),
    ({'segmentation': {'size': [20, 30], 'counts': 'é一'}}, module.RLE),
]


@pytest.mark.parametrize('changes, reason', FAULTS)
def test_objects_that_cannot_be_used(tmp_path, changes, reason):
    content = file_of({}, changes, {})
    before = copy.deepcopy(content['annotations'])
    kept, faults = sort_out(content, tmp_path, with_masks=True, is_evaluated=True)
    assert faults == {reason: [11]} and kept == [before[0], before[2]]
    if 'segmentation' in changes:
        kept, faults = sort_out(content, tmp_path, with_masks=False, is_evaluated=True)
        assert not faults and kept == content['annotations']


def test_small_boxes_are_left_out_of_training_alone(tmp_path):
    content = file_of({}, {'bbox': [1, 1, 0.5, 5]}, {'area': 0})
    kept, faults = sort_out(content, tmp_path, with_masks=True, is_evaluated=False)
    assert faults == {module.TINY: [11, 12]} and len(kept) == 1
    assert sort_out(content, tmp_path, with_masks=True, is_evaluated=True) == (content['annotations'], {})


def test_a_mask_keeps_its_whole_polygons(tmp_path):
    content = file_of({'segmentation': [[1, 1, 9, 9], *TRIANGLE]})
    (kept,), faults = sort_out(content, tmp_path, with_masks=True, is_evaluated=True)
    assert kept['segmentation'] == TRIANGLE and faults == {module.POLYGON: [10]}
    assert len(content['annotations'][0]['segmentation']) == 2  # the caller's own


def test_nothing_that_can_be_used(tmp_path):
    with pytest.raises(UserError, match='no object that can be used: 2 with a box under 1 px or of area 0'):
        sort_out(file_of(*[{'bbox': [0.1, 0.1, 0.3, 0.3]}] * 2), tmp_path, with_masks=False, is_evaluated=False)
    with pytest.raises(UserError, match='it has no annotations'):
        sort_out(file_of(), tmp_path, with_masks=False, is_evaluated=False)
    assert sort_out(file_of(), tmp_path, with_masks=True, is_evaluated=True) == ([], {})
    with pytest.raises(UserError, match='has no masks, which the config trains or evaluates: .*a box detector'):
        sort_out(file_of({'segmentation': []}, {'segmentation': []}), tmp_path, with_masks=True, is_evaluated=True)


def test_rle_of_pycocotools_are_whole(tmp_path):
    """Compressed and plain, of masks that are empty, full, fine-grained or large."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (20, 30), (7, 1), (480, 640)]
    for height, width in shapes:
        thresholds = (0, 0.01, 0.5, 1)
        for mask in [rng.uniform(size=(height, width)) < threshold for threshold in thresholds]:
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle['counts'] = rle['counts'].decode()
            flat = mask.ravel(order='F')
            counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
            counts = [0, *counts] if flat[0] else counts
            assert module._decompress(rle['counts'].encode()) == counts
            for plain in (rle, {'size': [height, width], 'counts': counts}):
                content = file_of({'segmentation': plain, 'bbox': [0, 0, 1, 1]})
                content['images'][0].update(height=height, width=width)
                assert sort_out(content, tmp_path, with_masks=True, is_evaluated=True)[1] == {}
