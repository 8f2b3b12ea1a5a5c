"""NMS in all its forms, against loops over pairs of boxes in float64."""

import math

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, nms, nms_match, soft_nms


def overlap(a, b, offset=0):
    """Intersection over union of two boxes of numbers."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def nms_loop(boxes, scores, threshold, offset=0, suppresses=lambda iou, threshold: iou > threshold):
    """{kept box: the boxes that it suppresses}, best first; equal scores in the order of torch.sort, as in mmcv."""
    boxes, left = boxes.double().tolist(), scores.sort(descending=True)[1].tolist()
    groups = {}
    while left:
        best, *others = left
        groups[best] = [other for other in others if suppresses(overlap(boxes[best], boxes[other], offset), threshold)]
        left = [other for other in others if other not in groups[best]]
    return groups


def soft_nms_loop(boxes, scores, threshold, sigma, min_score, method, offset):
    """[(box, new score)], best first, with a list of candidates that shrinks as mmcv's does."""
    boxes = boxes.double().tolist()
    candidates, kept = [[index, float(score)] for index, score in enumerate(scores.double())], []
    while candidates:
        best = max(range(len(candidates)), key=lambda place: candidates[place][1])
        candidates[0], candidates[best] = candidates[best], candidates[0]
        index, score = candidates.pop(0)
        kept.append((index, score))
        place = 0
        while place < len(candidates):
            iou = overlap(boxes[index], boxes[candidates[place][0]], offset)
            if method == 'gaussian':
                candidates[place][1] *= math.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                candidates[place][1] *= 1 - iou if method == 'linear' else 0
            if candidates[place][1] < min_score:
                candidates[place] = candidates[-1]
                candidates.pop()
            else:
                place += 1
    return kept


def make_boxes(count, whole=False):
    generator = torch.Generator().manual_seed(count)
    corner, size = torch.rand(count, 2, generator=generator) * 60, torch.rand(count, 2, generator=generator) * 30 + 1
    boxes, scores = torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)
    return (boxes.round(), (scores * 10).round() / 10) if whole else (boxes, scores)


@pytest.mark.parametrize('whole', [False, True], ids=['floats', 'ties'])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('count', [0, 1, 120])
def test_nms(count, offset, whole):
    boxes, scores = make_boxes(count, whole)
    for threshold in (0.1, 0.5, 0.7):
        dets, kept = nms(boxes, scores, threshold, offset=offset)
        assert kept.tolist() == list(nms_loop(boxes, scores, threshold, offset))
        assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], 1))


def test_equal_scores_are_in_mmcvs_order():
    boxes, scores = torch.arange(40.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0]), torch.full((40,), 0.5)
    order = scores.sort(descending=True)[1].tolist()  # mmcv calls just that
    assert nms(boxes, scores, 0.5)[1].tolist() == order
    assert nms(boxes[:1].expand(40, 4), scores, 0.5)[1].tolist() == order[:1]


def test_an_overlap_equal_to_the_threshold_is_kept():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1].tolist() == [0, 1]
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0]])  # 0.3 in float32 is above 0.3 in float64
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.3)[1].tolist() == [0, 1]
    assert [group.tolist() for group in nms_match(torch.tensor([[0.0, 0, 2, 1, 0.9], [0, 0, 1, 1, 0.8]]), 0.5)] == [
        [0, 1]
    ]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_any_precision(dtype):
    boxes, scores = make_boxes(120, whole=True)
    kept = nms(boxes.to(dtype), scores.to(dtype), 0.5, offset=1)[1].tolist()
    assert kept == list(nms_loop(boxes, scores, 0.5, offset=1))


@pytest.mark.parametrize('whole', [False, True], ids=['floats', 'ties'])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method, offset, whole):
    for count, min_score in ((0, 0.1), (1, 0.1), (80, 0.001), (80, 0.2)):
        boxes, scores = make_boxes(count, whole)
        before = scores.clone()
        dets, kept = soft_nms(boxes, scores, 0.3, 0.5, min_score, method, offset)
        expected = soft_nms_loop(boxes, scores, 0.3, 0.5, min_score, method, offset)
        assert kept.tolist() == [index for index, _ in expected]
        assert torch.equal(dets[:, :4], boxes[kept]) and torch.equal(scores, before)
        np.testing.assert_allclose(dets[:, 4], [score for _, score in expected], rtol=1e-5)


def test_nms_match():
    for whole in (False, True):
        boxes, scores = make_boxes(80, whole)
        expected = nms_loop(boxes, scores, 0.4, suppresses=lambda iou, threshold: iou >= threshold)
        found = nms_match(torch.cat([boxes, scores[:, None]], 1), 0.4)
        assert [group.tolist() for group in found] == [[best, *others] for best, others in expected.items()]
    assert nms_match(torch.zeros(0, 5), 0.4) == []


def test_batched_nms_is_nms_of_each_class():
    boxes, scores = make_boxes(120)
    classes = torch.arange(120) % 3
    for split in (10000, 50):  # above the second number, mmcv takes the classes one by one
        kept = batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.3, split_thr=split))[1]
        each = [(classes == index).nonzero().flatten() for index in range(3)]
        expected = [int(indices[best]) for indices in each for best in nms_loop(boxes[indices], scores[indices], 0.3)]
        assert sorted(kept.tolist()) == sorted(expected)
        assert torch.equal(kept, kept[scores[kept].argsort(descending=True)])
