"""The AP of test sets drawn anew from the tested images, from matches that an evaluation has made: a paired bootstrap.

Every sub-network is resampled with the same draws, so that the spread of a difference of two is that of the difference
from draw to draw, with what makes some images hard for both left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

LARGEST = 1e10  # pixels: COCO's range of all sizes


def draws(num_images: int, number: int) -> np.ndarray:
    """How often each image is in each drawn test set: (draws, images), the same in every run and on every machine.

    Args:
        num_images: in a test set, and drawn from it with replacement.
        number: of test sets.
    """
    random = np.random.RandomState(0)  # whose numbers NumPy never changes, unlike those of default_rng
    chosen = random.randint(num_images, size=(number, num_images))
    return np.stack([np.bincount(row, minlength=num_images) for row in chosen]).astype(np.int32)


def mean_of_known(aps: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over categories of those whose AP is known in a draw, for each draw; NaN where none is."""
    known = ~np.isnan(aps)
    with np.errstate(invalid='ignore'):
        return np.where(known, aps, 0).sum(axis=0) / known.sum(axis=0)


@dataclass(frozen=True)
class Matches:
    """What one category's AP depends on, over all sizes.

    Attributes:
        image: the index of each detection's image, detections in descending order of their scores: (N).
        is_hit: whether a detection is a true positive, at each IoU threshold: (T, N).
        is_ignored: whether it counts neither as one nor as a false one: (T, N).
        objects: how many there are to find on each image: (images).
    """

    image: np.ndarray
    is_hit: np.ndarray
    is_ignored: np.ndarray
    objects: np.ndarray

    def average_precision(self, drawn: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """AP of each drawn test set, over IoU thresholds and recalls, as COCO defines it; NaN where it has no object.

        The highest precision from a recall on is that of a true positive, so that only these are looked at.

        Args:
            drawn: how often each image is in each test set: (draws, images).
            recalls: the recall thresholds.
        """
        objects = drawn @ self.objects
        weights = np.take(drawn, self.image, axis=1)
        counted = weights.cumsum(axis=1)
        total = np.zeros(len(drawn))
        for is_hit, is_ignored in zip(self.is_hit, self.is_ignored):
            hits, left_out = np.flatnonzero(is_hit), np.flatnonzero(is_ignored)
            true = np.take(weights, hits, axis=1).cumsum(axis=1)
            positive = np.take(counted, hits, axis=1)
            if len(left_out):
                sums = np.pad(np.take(weights, left_out, axis=1).cumsum(axis=1), ((0, 0), (1, 0)))
                positive -= np.take(sums, np.searchsorted(left_out, hits), axis=1)
            precision = true / np.maximum(positive, 1)
            highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(recalls, true / np.maximum(objects, 1)[:, None], side='right')
            reached[true == 0] = 0  # a recall of 0 is that of the first true positive
            total += (highest * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
        return np.where(objects > 0, total / (len(self.is_hit) * len(recalls)), np.nan)


def find_matches(evaluation: Any, truth: dict[str, Any], found: dict[str, Any], most: int) -> Iterator[Matches]:
    """The matches of each category that an evaluation was run on.

    Args:
        evaluation: pycocotools' or faster-coco-eval's, run; the latter keeps IoUs and no matches.
        truth: a COCO data set, images and objects in the order of their ids.
        found: the same with detections.
        most: detections of an image and category that count.
    """
    params = evaluation.params
    thresholds = np.minimum(params.iouThrs, 1 - 1e-10)
    objects, detections = truth['annotations'], found['annotations']
    category, image, is_crowd = _columns(objects, category_id=0, image_id=0, iscrowd=0)
    seen, classes, score, area = _columns(detections, image_id=0, category_id=0, score=0, area=0)
    order = np.lexsort((-score, seen, classes))  # stable
    seen, classes, score, area = (values[order] for values in (seen, classes, score, area))
    is_first = (np.diff(classes, prepend=np.nan) != 0) | (np.diff(seen, prepend=np.nan) != 0)
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    crowds: dict[tuple[float, float], list[float]] = {}
    for key, flag in zip(zip(image.tolist(), category.tolist()), is_crowd.tolist()):
        crowds.setdefault(key, []).append(flag)
    of_start = {start: (seen[start], classes[start]) for start in starts.tolist()}
    pairs = [
        _Pair(start, evaluation.ious[key][:most], np.array(crowds[key], bool))
        for start, key in of_start.items()
        if key in crowds
    ]
    is_hit, on_crowd = np.zeros((2, len(order), len(thresholds)), bool)
    for rows, hits, ignored in _matched(pairs, thresholds):
        is_hit[rows], on_crowd[rows] = hits, ignored
    is_ignored = on_crowd | (~is_hit & ((area < 0) | (area > LARGEST))[:, None])
    for cat_id in params.catIds:
        rows = np.flatnonzero((classes == cat_id) & (rank < most))
        rows = rows[np.argsort(-score[rows], kind='stable')]
        places = np.searchsorted(params.imgIds, image[(category == cat_id) & (is_crowd == 0)])
        wanted = np.bincount(places, minlength=len(params.imgIds))
        yield Matches(np.searchsorted(params.imgIds, seen[rows]), is_hit[rows].T, is_ignored[rows].T, wanted)


class _Pair(NamedTuple):
    """The detections and objects of one category on one image: the first's row, their IoUs, and which are crowds."""

    start: int
    ious: np.ndarray
    is_crowd: np.ndarray


def _matched(pairs: Iterable[_Pair], thresholds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """COCO's matching, for many images at a time: rows, whether each is a hit, and whether it lies on a crowd.

    Each detection, in descending order of scores, takes the object of the highest IoU that is free (of equals the
    last), and else lies on a crowd, which is never taken.
    """
    alike: dict[int, list[_Pair]] = {}
    for pair in pairs:
        alike.setdefault(len(pair.is_crowd), []).append(pair)
    for number, group in alike.items():
        group.sort(key=lambda pair: -len(pair.ious))
        lengths = np.array([len(pair.ious) for pair in group])
        starts = np.array([pair.start for pair in group])
        is_crowd = np.array([pair.is_crowd for pair in group])[:, None]
        ious = np.zeros((len(group), lengths[0], number))
        for place, pair in enumerate(group):
            ious[place, : len(pair.ious)] = pair.ious
        is_free = np.repeat(~is_crowd, len(thresholds), axis=1)
        for rank in range(lengths[0]):
            those = slice(np.count_nonzero(lengths > rank))
            iou = ious[those, rank, None]
            fits = iou >= thresholds[:, None]
            can_take = fits & is_free[those]
            best = number - 1 - np.where(can_take, iou, -1)[..., ::-1].argmax(axis=-1)
            hits = can_take.any(axis=-1)
            is_free[those] &= ~(hits[..., None] & (np.arange(number) == best[..., None]))
            yield starts[those] + rank, hits, ~hits & (fits & is_crowd[those]).any(axis=-1)


def _columns(things: list[dict[str, Any]], **defaults: float) -> list[np.ndarray]:
    return [np.array([thing.get(key, default) for thing in things], float) for key, default in defaults.items()]
