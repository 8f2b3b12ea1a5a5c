"""What each operating point of a detector does to an image: the picture, the time, the cost and the accuracy."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from mmdet.structures import DetDataSample

from ..backbones import find_backbone
from ..cost.macs import count_costs_of_points
from ..errors import UserError
from ..export.artifact import Artifact
from ..inference import AnyDepthInferencer
from ..input_size import own_point
from ..operating_point import LIMITS, OperatingPoint
from ..results.pareto import Point, pareto_front
from ..results.rows import METRICS, Row, main_metric, of_weights, read_sub_nets
from ..skip_config import SkipConfig

STEP = 32  # pixels between two input sizes, unless those that were tested lie closer


@dataclass(frozen=True)
class Look:
    """An image at an operating point.

    Attributes:
        point: with size and proposals, where the detector has them.
        picture: (H, W, 3), uint8, RGB: what was found, drawn.
        num_found: how many objects are drawn.
        ms: of the forward, from the preprocessed image to detections.
        gmacs: None where nobody knows.
        accuracies: by the keys of METRICS; those that were not tested are left out.
    """

    point: OperatingPoint
    picture: np.ndarray
    num_found: int
    ms: float
    gmacs: float | None
    accuracies: Mapping[str, float]


class Playground:
    """Looks at images at any operating point. Threads may share it: a forward has the device to itself.

    Args:
        inferencer: of a detector that has depths.
        sub_nets: the ``sub_nets.json`` of tools/test.py, or its folder: AP and GMACs of points. None knows what an
            exported file says, and no AP of a checkpoint.

    Attributes:
        own: size and proposals of the config; None where there are none to choose.
        codes: all depths, the super-net first.
        accuracy_known: whether the AP of points is known.
        positions: the Pareto front of the tested points, the cheapest first; all depths where no AP is known.
        sizes: least, most and step of input sizes, or None.

    Raises:
        UserError: the detector has no depths, or they are untrained; ``sub_nets`` is no such file, or of other weights.
    """

    def __init__(self, inferencer: AnyDepthInferencer, sub_nets: str | os.PathLike[str] | None = None) -> None:
        self.inferencer = inferencer
        self._groups = find_backbone(inferencer.model).letter_groups
        self.own = own_point(inferencer.cfg)
        self.codes = list(SkipConfig.all(self._groups))
        tested = self._tested(sub_nets)
        tested_points = [OperatingPoint.from_row(row).filled(self.own) for row in tested]
        self._rows = dict(zip(tested_points, tested))
        self._alone = threading.Lock()
        self._warm: set[tuple[Any, ...]] = set()
        self._count = lru_cache(maxsize=256)(self._counted)
        self.accuracy_known = False
        self.positions = self._positions()
        self.sizes = self._sizes()
        inferencer.choose(point=OperatingPoint(self.codes[-1]))  # refuses untrained depths

    def point(self, code: str, size: float | None = None, proposals: float | None = None) -> OperatingPoint:
        """The point that three controls say.

        Raises:
            UserError: one of them is not valid, or larger than any that was tested and than the config's own.
        """
        mosts = dict(size=self.sizes[1] if self.sizes else None, proposals=self.own.proposals)
        numbers: dict[str, int] = {}
        for name, value in dict(size=size, proposals=proposals).items():
            if value is not None:
                numbers[name], most = int(value), mosts[name]
                if most is not None and value > most:  # a detector that has none refuses any
                    raise UserError(f'{name} can be {most} at most here, but got {value:g}')
        return OperatingPoint(SkipConfig.parse(code, self._groups), **numbers).filled(self.own)

    def look(self, image: np.ndarray, point: OperatingPoint, score: float = 0.3) -> Look:
        """Detect on an image at a point.

        The first image of a shape is detected twice, since a device's first call is slow.

        Args:
            image: (H, W, 3), uint8, BGR.
            point: where to run.
            score: the least of what is drawn.

        Raises:
            UserError: the detector cannot run there.
        """
        point = point.filled(self.own)
        asked = point.relative_to(self.own)
        with self._alone:
            if (asked, image.shape) not in self._warm:
                self.inferencer(image, point=asked)
                self._warm = {*list(self._warm)[-999:], (asked, image.shape)}
            (found,) = self.inferencer(image, point=asked, return_datasamples=True)['predictions']
            picture = self._drawn(image, found, score)
            gmacs = self._gmacs(point)
        num_found = int((found.pred_instances.scores >= score).sum())
        return Look(point, picture, num_found, found.ms, gmacs, self._accuracies(point))

    def _drawn(self, image: np.ndarray, found: DetDataSample, score: float) -> np.ndarray:
        """RGB, without the label in the corner that tools/demo.py draws: the page says it beside the picture."""
        painter, state = self.inferencer.visualizer, np.random.get_state()
        np.random.seed(0)  # mmdet draws the shades of masks by chance, which would differ between the two pictures
        try:
            painter.add_datasample('page', image[..., ::-1], found, draw_gt=False, pred_score_thr=score)
        finally:
            np.random.set_state(state)
        return painter.get_image()

    def _tested(self, sub_nets: str | os.PathLike[str] | None) -> list[Row]:
        if sub_nets is not None:
            found = of_weights(read_sub_nets(sub_nets), self.inferencer.checkpoint_sha256)
            self.own = self.own.filled(OperatingPoint(None, found.run.size, found.run.proposals))
            return [row for row in found.rows if row['skip']]
        model = self.inferencer.model
        return list(model.about['rows']) if isinstance(model, Artifact) else []

    def _accuracies(self, point: OperatingPoint) -> dict[str, float]:
        row = self._rows.get(point, {})
        return {key: row[key] for key in METRICS if row.get(key) is not None}

    def _gmacs(self, point: OperatingPoint) -> float | None:
        """Those of the tested row, or else counted; of an exported file only those that it knows."""
        if (known := self._rows.get(point, {}).get('gmacs')) is not None:
            return known
        if isinstance(self.inferencer.model, Artifact):
            return None
        asked = point.relative_to(self.own)
        return self._count(asked.size, asked.proposals)[asked.skip]

    def _counted(self, size: int | None, proposals: int | None) -> dict[SkipConfig | None, float]:
        points = [OperatingPoint(code, size, proposals) for code in self.codes]
        costs = count_costs_of_points(self.inferencer.model, points, self.inferencer.cfg)
        return {point.skip: cost.gmacs for point, cost in zip(points, costs)}

    def _positions(self) -> list[OperatingPoint]:
        metric = main_metric(self._rows.values())
        worth = {point: row[metric] for point, row in self._rows.items() if row.get(metric) is not None}
        self.accuracy_known = bool(worth)
        if not worth:
            points = [OperatingPoint(code).filled(self.own) for code in self.codes]
            return sorted(points, key=lambda point: self._gmacs(point) or -sum(point.skip or ()))
        costs = {point: self._gmacs(point) for point in worth}
        front = pareto_front(Point(cost, worth[at], str(at)) for at, cost in costs.items() if cost is not None)
        return [OperatingPoint.parse(point.skip) for point in front]

    def _sizes(self) -> tuple[int, int, int] | None:
        own = own_point(self.inferencer.cfg).size
        if own is None:
            return None
        known = {own, *(point.size for point in self._rows if point.size)}
        step = math.gcd(STEP, *known)
        least = max(LIMITS['size'][0], min(known) // 2)
        return math.ceil(least / step) * step, max(known), step
