"""AnyDepthInferencer: a detector whose operating point is chosen by each call, by its name or by a time budget."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Literal, overload

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import print_log

from ..backbones import AdaptiveDepthBackbone, find_backbone
from ..backbones.adaptive_depth import Skip
from ..cost.images import find_images
from ..cost.latency import require_size
from ..cost.timing import require_counts
from ..errors import UserError
from ..export.artifact import Artifact
from ..files import file_sha256
from ..input_size import default_input_size, for_images, own_point, pipeline_at
from ..operating_point import OperatingPoint
from ..points import PointLike, point_in_force, require_point, using_point
from ..results.intervals import can_be_told_apart
from ..results.pareto import Point, best_under_budget, cheapest_alike, pareto_front
from ..results.rows import Row
from .budget import cache_folder, calibrate, tested_rows, worth_by_depth, worth_in_file
from .controller import BudgetController
from .held import frame_by_frame, require_log
from .inputs import Inputs, naming_what_fails, require_paths
from .strict import Images, StrictInferencer


class AnyDepthInferencer(StrictInferencer):
    """mmdet's DetInferencer, for images, folders and videos, at any operating point of one model.

    >>> inferencer = AnyDepthInferencer('configs/mask_rcnn_r50_adn_1x_coco.py', 'epoch_12.pth')
    >>> inferencer('street.jpg', skip='TTFF')
    >>> inferencer('street.jpg', point='TTFF@640/300')
    >>> inferencer('drive.mp4', budget_ms=35, out_dir='outputs')
    >>> for prediction in inferencer('rtsp://camera/1', budget_ms=35, hold=True):
    ...     print(prediction['point'], prediction['frame_ms'])

    Threads may call one inferencer at the same time, each with its own point.

    Args:
        model: as in :class:`~adn_mmdet.inference.strict.StrictInferencer`.
        weights: as there.
        device: as there.
        sub_nets: the ``sub_nets.json`` of tools/test.py, or the work folder that holds it: the AP that budgets go by,
            and the points that they choose from. None goes by the number of blocks that a depth runs, at the config's
            own size and proposals, since nobody knows what others cost in AP.
        metric: which AP of that file.
        images: a folder of images that points are timed on, since what is detected decides the time; None takes the
            config's test set, and noise where that is not there.
        cache_dir: where calibrations are kept; None takes :func:`~adn_mmdet.inference.budget.cache_folder`.
        allow_untrained: run skipped depths although the weights have no skip-aware norms.
        **kwargs: the others of StrictInferencer: ``amp``, ``channels_last``, ``compiled``, ``show_progress``, …

    Raises:
        UserError: for whatever a user can get wrong.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Config | None = None,
        weights: str | os.PathLike[str] | None = None,
        device: str | None = None,
        *,
        sub_nets: str | os.PathLike[str] | None = None,
        metric: str = 'bbox_mAP',
        images: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        allow_untrained: bool = False,
        **kwargs: Any,
    ) -> None:
        require_paths(sub_nets=sub_nets, images=images, cache_dir=cache_dir)
        super().__init__(model, weights, device, **kwargs)
        has_depths = any(isinstance(module, AdaptiveDepthBackbone) for module in self.model.modules())
        self.backbone = find_backbone(self.model) if has_depths else None
        self.allow_untrained = allow_untrained
        self.cache_dir = Path(cache_dir) if cache_dir else cache_folder()
        self.images = images
        self.input_size = default_input_size(self.cfg)
        self.metric = metric
        self.tested = self._tested_rows(sub_nets) if sub_nets is not None else {}
        self.worth = {point: row[metric] for point, row in self.tested.items()} or self._worth_without_rows()
        self._said: set[str] = set()
        self.fronts: dict[int, list[Point]] = {}  # by batch size: the points worth running
        self._calibrating = threading.Lock()

    @overload
    def __call__(
        self, inputs: Inputs, batch_size: int = 1, *, hold: Literal[True], **kwargs: Any
    ) -> Iterator[dict[str, Any]]: ...

    @overload
    def __call__(
        self, inputs: Inputs, batch_size: int = 1, *, hold: Literal[False] = False, **kwargs: Any
    ) -> dict[str, list[Any]]: ...

    def __call__(
        self,
        inputs: Inputs,
        batch_size: int = 1,
        *,
        skip: Skip | None = None,
        point: PointLike | None = None,
        budget_ms: float | None = None,
        hold: bool = False,
        log: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, list[Any]] | Iterator[dict[str, Any]]:
        """Detect.

        Args:
            inputs: as in DetInferencer, or a video, or a live source.
            batch_size: images a forward.
            skip: the depth, at the input size and the proposals in force.
            point: an operating point, such as ``'TTFF@640/300'``; what it leaves out is the config's own, and of the
                depth the one in force.
            budget_ms: the most milliseconds that a call may take, from image files to detections, as measured by
                :meth:`calibrate`; the best point within it runs, or the cheapest of those that the tested images cannot
                tell apart from it.
            hold: choose the point anew for each frame or image, by what those before it really took, so that the budget
                holds while the load of the machine changes. Nothing runs until what is returned is iterated over.
            log: a CSV file of what ran: ``frame,point,ms``. With ``hold`` only.
            **kwargs: those of DetInferencer, such as ``out_dir``.

        Without ``skip``, ``point`` and ``budget_ms`` what is in force runs: that of ``using_point`` or ``using_skip``,
        else what is stored.

        Returns:
            That of StrictInferencer; a prediction has its ``skip`` and its ``point`` as well. Its ``ms`` is that of its
            forward alone. With ``hold`` a generator of predictions, none of which is kept; their ``frame_ms`` is what
            the budget is of, see :func:`~adn_mmdet.inference.held.frame_by_frame`.

        Raises:
            UserError: for whatever a user can get wrong.
        """
        images = self._inputs_to_list(inputs)  # what is wrong with them is said before a calibration
        if hold:
            self._require_one(skip, point, budget_ms)
            return self._hold(images, batch_size, budget_ms, log, **kwargs)
        if log is not None:
            raise UserError('log=FILE says what a held budget ran: give hold=True as well')
        chosen = self.choose(skip, budget_ms, batch_size, point)
        with using_point(self.model, chosen):
            return super().__call__(images, batch_size, **kwargs)

    def choose(
        self,
        skip: Skip | None = None,
        budget_ms: float | None = None,
        batch_size: int = 1,
        point: PointLike | None = None,
    ) -> OperatingPoint:
        """The operating point that a call with these arguments runs at.

        Raises:
            UserError: a code or point that is not valid, a budget that no point keeps, two of them, or a depth that is
                untrained.
        """
        self._require_one(skip, point, budget_ms)
        chosen = point_in_force(self.model)
        if point is not None:
            parsed = require_point(self.model, point)
            chosen = OperatingPoint(parsed.skip or chosen.skip, parsed.size, parsed.proposals)
        elif skip is not None and self.backbone:
            chosen = OperatingPoint(self.backbone.resolve_skip(skip), chosen.size, chosen.proposals)
        self._require_trained(chosen, budget_ms)
        if budget_ms is not None:
            chosen = self._best_within(budget_ms, batch_size)
        self._pipeline_at(chosen.size)  # refuses a size that the test pipeline cannot be told
        return chosen

    def _require_one(self, skip: Skip | None, point: PointLike | None, budget_ms: float | None) -> None:
        given = dict(skip=skip, point=point, budget_ms=budget_ms)
        asked = [f'{name}={value}' for name, value in given.items() if value is not None]
        if len(asked) > 1:
            raise UserError(f'{" and ".join(asked)} were both given: give one of them')
        if self.backbone is None and asked and point is None:
            kind = type(self.model.backbone).__name__
            raise UserError(f'{kind} has no depth to choose: leave skip and budget_ms out')

    def _hold(
        self,
        images: Images,
        batch_size: int,
        budget_ms: float | None,
        log: str | os.PathLike[str] | None,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any]]:
        """Check what is asked for, calibrate, and return the generator of predictions."""
        if budget_ms is None:
            raise UserError('hold=True holds a budget: give budget_ms=MILLISECONDS')
        if batch_size != 1:
            raise UserError(f'a budget is held frame by frame, but got batch_size={batch_size}: leave it out')
        self._require_trained(point_in_force(self.model), budget_ms)
        require_log(log)
        front = self._front(budget_ms, batch_size)
        points = [OperatingPoint.parse(point.skip) for point in front]
        controller = BudgetController([point.cost for point in front], budget_ms)
        return frame_by_frame(self, images, points, controller, log, **kwargs)

    def _require_trained(self, point: OperatingPoint, budget_ms: float | None) -> None:
        skips = budget_ms is not None or any(point.skip or ())
        if self.backbone and skips and self.backbone.num_untrained_norms and not self.allow_untrained:
            raise UserError(
                f'{self.weights} has no skip-aware norms, so that skipped depths are untrained: '
                f'run {point.super_net().skip}, or allow them (allow_untrained=True, --allow-untrained)'
            )

    def calibrate(
        self, input_size: tuple[int, int] | None = None, batch_size: int = 1, rounds: int = 20
    ) -> list[dict[str, Any]]:
        """Measure this device's latency of each point, or find it in the cache; budgets go by it from then on.

        Images are prepared by the test pipeline, at the size of each point, and timed end to end.

        Args:
            input_size: height and width that images are fitted into instead; None takes that of the last call, at first
                the test pipeline.
            batch_size: images a call; each has its own calibration.
            rounds: timed calls of each point, in turn.

        Returns:
            One row a point, with the keys of :class:`~adn_mmdet.cost.latency.LatencyRow`.

        Raises:
            UserError: numbers that are not positive, a detector that has no depth to choose, or ``input_size`` beside
                points of several sizes.
        """
        find_backbone(self.model)
        size = self.input_size if input_size is None else input_size
        require_size(size)
        fitted = None if tuple(size) == default_input_size(self.cfg) else size
        if fitted and any(point.size for point in self.worth):
            raise UserError(
                f'input_size={size} is for points of one size, but budgets choose among several: leave it out'
            )
        require_counts(batch_size=batch_size, rounds=rounds)
        with self._calibrating:
            filename = getattr(self.cfg, 'filename', None)
            run = dict(
                name=Path(filename).stem if filename else type(self.model).__name__,
                config=filename,
                checkpoint_sha256=self.checkpoint_sha256,
                weights=None if self.checkpoint_sha256 else self.weights,
                batch_size=batch_size,
                input_size=list(size),
                amp=self.amp,
                channels_last=self.channels_last,
                compile=self.compiled,
                rounds=rounds,
            ) | getattr(self.model, 'facts', {})
            images = find_images(self.cfg, self.images)
            rows = calibrate(self.model, list(self.worth), run, images, self.cfg, self.cache_dir, fitted)
            self.input_size = size
            points = [OperatingPoint.from_row(row) for row in rows]
            self.fronts[batch_size] = pareto_front(
                Point(row['ms'], self.worth[point], str(point)) for row, point in zip(rows, points)
            )
        return rows

    def _best_within(self, budget_ms: float, batch_size: int) -> OperatingPoint:
        """The best point within a budget, or the cheapest that cannot be told apart from it, which is said once."""
        front = self._front(budget_ms, batch_size)
        best = best_under_budget(front, budget_ms)
        chosen = cheapest_alike(front, best, lambda point: self._are_alike(point, best))
        text = (
            f'{chosen.skip} ({chosen.cost:.4g} ms) runs for a budget of {budget_ms:g} ms: {best.skip} '
            f'({best.cost:.4g} ms) fits as well, but cannot be told apart from it on the images that were tested'
        )
        if chosen != best and text not in self._said:
            self._said.add(text)
            print_log(text, 'current')
        return OperatingPoint.parse(chosen.skip)

    def _are_alike(self, point: Point, best: Point) -> bool:
        row, other = (self.tested.get(OperatingPoint.parse(each.skip)) for each in (point, best))
        return row is not None and other is not None and not can_be_told_apart(row, other, self.metric)

    def _front(self, budget_ms: float, batch_size: int) -> list[Point]:
        """The points worth running, the fastest first, for a budget that is one."""
        if not isinstance(budget_ms, Real) or not (math.isfinite(budget_ms) and budget_ms > 0):
            raise UserError(f'budget_ms should be a positive number of milliseconds, but got {budget_ms!r}')
        if batch_size not in self.fronts:
            self.calibrate(batch_size=batch_size)
        return self.fronts[batch_size]

    def _worth_without_rows(self) -> dict[OperatingPoint, float]:
        known = worth_in_file(self.model, self.metric) if isinstance(self.model, Artifact) else {}
        return known or (worth_by_depth(self.backbone) if self.backbone else {})

    def _tested_rows(self, sub_nets: str | os.PathLike[str]) -> dict[OperatingPoint, Row]:
        backbone, own = find_backbone(self.model), own_point(self.cfg)
        return tested_rows(sub_nets, self.checkpoint_sha256, backbone.letter_groups, self.metric, own)

    def _init_pipeline(self, cfg: Config) -> Callable[[Any], Any]:
        """The test pipeline, at the size in force when an image is read."""
        self._pipelines: dict[int | None, Callable[[Any], Any]] = {None: super()._init_pipeline(cfg)}
        return lambda image: self._pipeline_at(point_in_force(self.model).size)(image)

    def _pipeline_at(self, size: int | None) -> Callable[[Any], Any]:
        if size not in self._pipelines:
            steps = Compose(for_images(pipeline_at(self.cfg, size)))
            self._pipelines[size] = naming_what_fails(steps)
        return self._pipelines[size]

    @cached_property
    def checkpoint_sha256(self) -> str | None:
        """The hash of the weights' file; None where there is no file, such as in a remote storage."""
        if isinstance(self.model, Artifact):
            return self.model.facts['checkpoint_sha256']
        return file_sha256(self.weights) if os.path.isfile(self.weights) else None

    def forward(self, inputs: dict[str, Any], **kwargs: Any) -> list[DetDataSample]:
        """Run the detector on one batch, at the point of this context; each result knows it and its ``ms``."""
        predictions = super().forward(inputs, **kwargs)
        point = point_in_force(self.model)
        for prediction in predictions:
            prediction.set_metainfo(dict(skip=str(point.skip) if point.skip else None, point=str(point)))
        return predictions
