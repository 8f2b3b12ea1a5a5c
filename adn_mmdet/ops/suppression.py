"""Non-maximum suppression: plain, soft, and with the boxes that each kept box suppresses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .dtypes import widened


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The boxes that no better box overlaps by more than a threshold.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: the largest intersection over union that is kept.
        offset: 0 or 1; widths and heights are x2 - x1 + offset.

    Returns:
        Indices of the kept boxes, best first; equal scores in mmcv's order, which is that of ``torch.sort``.
    """
    order = scores.sort(descending=True)[1]
    boxes, scores = widened(boxes)[order], widened(scores)[order]
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], 1)
    # In float32, as mmcv takes it: an overlap of 0.3 is more than 0.3 in float64, and boxes of whole pixels have such.
    return order[torch.ops.torchvision.nms(boxes, scores, float(np.float32(iou_threshold)))]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the score of boxes that overlap a better one, instead of dropping them (Bodla et al., 2017).

    Args:
        boxes: (N, 4) as x1, y1, x2, y2, on the CPU.
        scores: (N,).
        dets: (N, 5), whose first K rows are filled with the kept boxes and their new scores.
        iou_threshold: overlap from which on a score is lowered; not used by method 2.
        sigma: width of method 2.
        min_score: boxes whose score falls below it are dropped.
        method: 0 drops as plain NMS does, 1 multiplies by 1 - overlap, 2 by exp(-overlap² / sigma).
        offset: 0 or 1; widths and heights are x2 - x1 + offset.

    Returns:
        Indices (K,) of the kept boxes, best first.
    """
    # Columns: x1, y1, x2, y2, score, area. Rows are swapped and dropped in mmcv's order, so that ties fall alike.
    columns = boxes.detach().float().numpy()
    x1, y1, x2, y2 = (np.array(columns[:, column]) for column in range(4))
    score = np.array(scores.detach().float().numpy())
    area = (x2 - x1 + np.float32(offset)) * (y2 - y1 + np.float32(offset))
    rows = np.stack([x1, y1, x2, y2, score, area], 1)
    index = np.arange(len(rows))
    first, count = 0, len(rows)
    while first < count:
        best = first + int(rows[first:count, 4].argmax())
        rows[[first, best]], index[[first, best]] = rows[[best, first]], index[[best, first]]
        rest = rows[first + 1 : count]
        rest[:, 4] *= _decay(rows[first], rest, iou_threshold, sigma, method, offset)
        kept = rest[:, 4] >= np.float32(min_score)
        remaining = int(kept.sum())
        # A dropped row's place is taken by the last row that is kept.
        holes = first + 1 + np.flatnonzero(~kept[:remaining])
        fillers = first + 1 + remaining + np.flatnonzero(kept[remaining:])[::-1]
        rows[holes], index[holes] = rows[fillers], index[fillers]
        first, count = first + 1, first + 1 + remaining
    dets[:count] = torch.from_numpy(rows[:count, :5]).to(dets)
    return torch.from_numpy(index[:count])


def _decay(
    best: np.ndarray, rest: np.ndarray, iou_threshold: float, sigma: float, method: int, offset: int
) -> np.ndarray:
    """Factors (R,) of the scores of boxes (R, 6), by their overlap with a better one (6,)."""
    sides = np.minimum(best[2:4], rest[:, 2:4]) - np.maximum(best[:2], rest[:, :2]) + np.float32(offset)
    width, height = np.maximum(sides, np.float32(0)).T
    intersection = width * height
    overlap = intersection / (best[5] + rest[:, 5] - intersection)
    if method == 2:
        # numpy's exp of float32 is less exact than C's, which mmcv uses.
        return np.exp((-(overlap * overlap) / np.float32(sigma)).astype(np.float64)).astype(np.float32)
    lowered = 1 - overlap if method == 1 else np.zeros_like(overlap)
    return np.where(overlap >= np.float32(iou_threshold), lowered, np.float32(1))


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Plain NMS that says which boxes each kept box suppresses.

    Args:
        dets: (N, 5) as x1, y1, x2, y2, score, on the CPU.
        iou_threshold: the intersection over union from which on a box is suppressed.

    Returns:
        For each kept box, best first, its index and those of what it suppresses, in the order of their scores.
    """
    dets = widened(dets)
    corners, order = dets[:, :4], dets[:, 4].sort(descending=True)[1]
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    groups = []
    while len(order):
        best, rest = order[0], order[1:]
        sides = torch.minimum(corners[best, 2:], corners[rest, 2:]) - torch.maximum(
            corners[best, :2], corners[rest, :2]
        )
        intersection = sides.clamp(min=0).prod(1)
        suppressed = intersection / (areas[best] + areas[rest] - intersection) >= iou_threshold
        groups.append([int(best), *rest[suppressed].tolist()])
        order = rest[~suppressed]
    return groups
