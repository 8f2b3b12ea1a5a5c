"""BudgetController: which of several operating points runs next, so that frames keep a time budget under any load.

Feed-forward with a measured gain: a point is expected to take its calibrated time × the slowdown that recent frames
had. The slowdown is a high quantile of a short window, so that it rises within a few frames, forgets within a window,
and passes over a single slow frame. The best point that is expected within the budget runs; a better one than that in
force only where it stays some way below the budget, so that two points do not take turns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

WINDOW = 20  # frames that are looked back on: after a change of load the old one is forgotten within as many
QUANTILE = 0.9  # of their slowdowns: three slow frames count, one or two do not
HYSTERESIS = 0.05  # share of the budget that a better point must leave free


class BudgetController:
    """Keeps the time of frames within a budget by the choice of the point that the next one runs at.

    >>> controller = BudgetController([18.0, 25.0, 40.0], budget_ms=30)
    >>> controller.index
    1
    >>> for ms in (45, 45, 45):  # three frames of 25 ms took 1.8 × as long
    ...     controller.update(ms)

    Args:
        times_ms: what each point takes where nothing disturbs it, the fastest and least accurate first.
        budget_ms: the most that a frame should take.

    Attributes:
        index: of the point that runs next.
    """

    def __init__(self, times_ms: Sequence[float], budget_ms: float) -> None:
        self.times_ms, self.budget_ms = tuple(times_ms), budget_ms
        self._slowdowns: deque[float] = deque(maxlen=WINDOW)
        self.index = self._best_within([budget_ms] * len(self.times_ms))

    def update(self, ms: float) -> None:
        """Note what the frame took that ran at ``index``, from which the next ``index`` follows.

        Args:
            ms: milliseconds, in the sense of ``times_ms`` and of the budget.
        """
        self._slowdowns.append(ms / self.times_ms[self.index])
        better = self.budget_ms * (1 - HYSTERESIS)
        self.index = self._best_within(
            [self.budget_ms if index <= self.index else better for index in range(len(self.times_ms))]
        )

    @property
    def cannot_hold(self) -> bool:
        """Whether even the fastest point exceeds the budget: as calibrated, or by most frames of a whole window."""
        if self._slowdowns and len(self._slowdowns) < WINDOW:
            return False
        return self.times_ms[0] * median(self._slowdowns or [1.0]) > self.budget_ms

    def _best_within(self, limits_ms: Sequence[float]) -> int:
        """The last point that is expected to take no longer than its limit; the fastest where there is none."""
        slowdown = self._slowdown()
        within = [index for index, ms in enumerate(self.times_ms) if ms * slowdown <= limits_ms[index]]
        return max(within, default=0)

    def _slowdown(self) -> float:
        ordered = sorted(self._slowdowns)
        return ordered[math.ceil(QUANTILE * len(ordered)) - 1] if ordered else 1.0
