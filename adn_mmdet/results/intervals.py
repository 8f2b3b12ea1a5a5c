"""How sure a difference in AP is: 95 % intervals by resampling the tested images in pairs.

A test evaluates every operating point on the same ``NUM_DRAWS`` test sets, drawn from its images with replacement, and
keeps the AP on each in the point's row, as base64 of little-endian 32-bit floats. The interval of a difference is where
95 % of the differences on these test sets lie, so that what makes a drawn set hard for both does not widen it. Rows of
different runs can be paired as well, where the images are the same (B. Efron, Bootstrap methods, 1979).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .rows import RESAMPLED, Row

NUM_DRAWS = 300
PERCENT = 95


class Interval(NamedTuple):
    """Where a difference in AP lies, in fractions of 1."""

    low: float
    high: float

    def __str__(self) -> str:
        return f'{PERCENT} %: {100 * self.low:+.2f} to {100 * self.high:+.2f}'


def pack(aps: Sequence[float] | np.ndarray) -> str:
    """AP on drawn test sets, NaN where one has no object, as a row holds them."""
    return base64.b64encode(np.asarray(aps, '<f4').tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    """What was packed; empty for what no test has written."""
    content = base64.b64decode(text)
    return np.frombuffer(content, '<f4').astype(float) if len(content) % 4 == 0 else np.empty(0)


def interval_of_difference(row: Row, other: Row, metric: str) -> Interval | None:
    """The 95 % interval of one row's AP minus another's; None where one of them was not resampled, or otherwise."""
    drawn = [unpack(text) for row in (row, other) if (text := row.get(f'{metric}{RESAMPLED}'))]
    if len(drawn) < 2 or len(drawn[0]) != len(drawn[1]):
        return None
    differences = drawn[0] - drawn[1]
    known = differences[np.isfinite(differences)]
    if not len(known):
        return None
    tail = (100 - PERCENT) / 2
    return Interval(*map(float, np.percentile(known, [tail, 100 - tail])))


def can_be_told_apart(row: Row, other: Row, metric: str) -> bool:
    """Whether 0 is outside the interval of two rows' difference; where that is not known, whether their AP differs."""
    interval = interval_of_difference(row, other, metric)
    if interval is None:
        return bool(row[metric] != other[metric])
    return interval.low > 0 or interval.high < 0


def without_draws(row: Row) -> dict[str, Any]:
    """A row without what it was resampled to."""
    return {key: value for key, value in row.items() if not key.endswith(RESAMPLED)}
