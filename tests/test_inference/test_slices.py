import importlib
import sys

import cv2
import numpy as np
import pytest

from adn_mmdet import UserError

predict = pytest.importorskip('sahi.predict', reason='the extra `sahi` is not installed')
# Four slices that do not overlap, and no two objects that are taken for one.
SLICES = dict(slice_height=64, slice_width=64, overlap_height_ratio=0, overlap_width_ratio=0, verbose=0)
ALL = dict(postprocess_type='NMS', postprocess_match_threshold=2.0)
CORNERS = [(x, y) for y in (0, 64) for x in (0, 64)]


@pytest.fixture
def image(shapes):
    """Four images of the set as one, (128, 128, 3), BGR."""
    a, b, c, d = (cv2.imread(str(path)) for path in sorted((shapes / 'val').iterdir())[:4])
    return np.vstack([np.hstack([a, b]), np.hstack([c, d])])


@pytest.fixture
def model(inferencer):
    slices = importlib.import_module('adn_mmdet.inference.slices')
    return slices.SlicedModel(inferencer, slices='TTTT', whole='FFFF@96', confidence_threshold=0.2)


def test_slices_and_the_whole_image_at_their_own_points(model, inferencer, image):
    """SAHI has what the inferencer finds on the slices at their depth, and on the whole image at its own point."""
    result = predict.get_sliced_prediction(image[..., ::-1], model, batch_size=4, **SLICES, **ALL)
    tiles = [image[y : y + 64, x : x + 64] for x, y in CORNERS]
    parts = inferencer(tiles, 4, skip='TTTT')['predictions'] + inferencer(image, point='FFFF@96')['predictions']
    expected = {}
    for (x, y), found in zip([*CORNERS, (0, 0)], parts):
        for (left, top, right, bottom), label, score in zip(found['bboxes'], found['labels'], found['scores']):
            if score >= 0.2:
                expected[score] = (inferencer.classes[label], [left + x, top + y, right + x, bottom + y])
    found = result.object_prediction_list
    assert len(found) == len(expected) > 5 and any(one.mask for one in found)
    for one in found:
        name, (left, top, right, bottom) = expected.pop(one.score.value)
        x1, y1, x2, y2 = one.bbox.to_xyxy()  # of the mask, where there is one
        assert one.category.name == name
        assert left - 1 <= x1 <= x2 <= right + 1 and top - 1 <= y1 <= y2 <= bottom + 1
        assert one.mask or [x1, y1, x2, y2] == [left, top, right, bottom]
    assert not expected


def test_points_are_checked_at_once(inferencer):
    slices = importlib.import_module('adn_mmdet.inference.slices')
    with pytest.raises(UserError, match="'TTT' is not a skip code"):
        slices.SlicedModel(inferencer, slices='TTT')


def test_without_sahi(monkeypatch):
    monkeypatch.delitem(sys.modules, 'adn_mmdet.inference.slices', raising=False)
    monkeypatch.setitem(sys.modules, 'sahi.models.base', None)
    with pytest.raises(UserError, match=r"slices need sahi .*: pip install -e '\.\[sahi\]'"):
        importlib.import_module('adn_mmdet.inference.slices')
