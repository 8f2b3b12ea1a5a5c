"""RoIAlign split over threads equals RoIAlign on one thread to the bit, whoever calls it."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from loops import with_gradients
from mmcv.ops import roi_align

from adn_mmdet.ops import threads

TIMEOUT = 60  # seconds


@pytest.fixture
def three_threads(monkeypatch):
    """Three threads, also for little work."""
    monkeypatch.setattr(threads, 'WORTHWHILE', 1)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def split(three_threads, monkeypatch):
    """The numbers of parts that were computed."""
    numbers, run = [], ThreadPoolExecutor.map

    def count(pool, function, parts):
        numbers.append(len(parts))
        return run(pool, function, parts)

    monkeypatch.setattr(ThreadPoolExecutor, 'map', count)
    return numbers


def make_inputs(boxes=50, channels=40):
    generator = torch.Generator().manual_seed(boxes)
    corner, size = torch.rand(boxes, 2, generator=generator) * 100, torch.rand(boxes, 2, generator=generator) * 60
    image = torch.randint(0, 2, (boxes, 1), generator=generator).float()
    features = torch.randn(2, channels, 20, 30, generator=generator)
    return features, torch.cat([image, corner, corner + size], 1)


def align(features, boxes):
    return roi_align(features, boxes, 7, 0.25, 0, 'avg', True)


def on_one_thread(features, boxes):
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return with_gradients(lambda features: align(features, boxes), features)
    finally:
        torch.set_num_threads(threads_before)


def equal(found, expected):
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize('boxes, channels', [(0, 40), (1, 1), (2, 2), (50, 40)])
def test_split_equals_unsplit(split, boxes, channels):
    features, rois = make_inputs(boxes, channels)
    expected = on_one_thread(features, rois)
    assert not split
    for layout in (torch.contiguous_format, torch.channels_last):
        some = features.contiguous(memory_format=layout)
        assert equal(with_gradients(lambda features: align(features, rois), some), expected)
    parts = {0: 1, 1: 1, 2: 2, 50: 10}[boxes], {1: 1, 2: 2, 40: 10}[channels]
    assert split == [*(parts if boxes else parts[1:])] * 2
    with torch.inference_mode():
        assert torch.equal(align(features, rois), expected[0])


def test_bfloat16(three_threads):
    features, rois = make_inputs()
    features, rois = features.bfloat16(), rois.bfloat16()
    assert equal(with_gradients(lambda features: align(features, rois), features), on_one_thread(features, rois))


def test_little_work_and_one_thread_are_not_split(split, monkeypatch):
    features, rois = make_inputs()
    on_one_thread(features, rois)
    monkeypatch.setattr(threads, 'WORTHWHILE', 10**9)
    with_gradients(lambda features: align(features, rois), features)
    assert not split


def test_several_callers_at_once(three_threads):
    inputs = [make_inputs(20 + index) for index in range(8)]
    expected = [on_one_thread(*pair) for pair in inputs]
    with ThreadPoolExecutor(4) as callers:
        found = callers.map(lambda pair: with_gradients(lambda features: align(features, pair[1]), pair[0]), inputs)
        assert all(equal(one, other) for one, other in zip(found, expected, strict=True))


def _sum_in_child(queue, features, rois):
    queue.put(align(features, rois).double().sum().item())


def test_a_forked_process_has_threads_of_its_own(three_threads):
    features, rois = make_inputs(20, 4)  # so few numbers that torch itself starts no threads, which would not survive
    expected = align(features, rois).double().sum().item()
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(queue, features, rois))
    child.start()
    try:
        assert queue.get(timeout=TIMEOUT) == expected
    finally:
        child.kill()
        child.join()


def test_an_error_in_a_thread_is_raised(three_threads):
    with pytest.raises(RuntimeError, match='device|dtype|type'):
        features, rois = make_inputs()
        align(features, rois.long().double())
