"""AnyDepthInferencer: a detector whose depth is chosen by each call, by its code or by a time budget."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

from mmdet.structures import DetDataSample
from mmengine.config import Config

from ..backbones import AdaptiveDepthBackbone, find_backbone
from ..backbones.adaptive_depth import Skip
from ..cost.images import find_images
from ..cost.latency import require_size
from ..cost.timing import require_counts
from ..errors import UserError
from ..export.artifact import Artifact
from ..files import file_sha256
from ..input_size import default_input_size
from ..results.pareto import Point, best_under_budget, pareto_front
from ..skip_config import SkipConfig
from .budget import cache_folder, calibrate, worth_by_accuracy, worth_by_depth, worth_in_file
from .inputs import Image, require_paths
from .strict import StrictInferencer
from .video import Video


class AnyDepthInferencer(StrictInferencer):
    """mmdet's DetInferencer, for images, folders and videos, at any depth of one model.

    >>> inferencer = AnyDepthInferencer('configs/mask_rcnn_r50_adn_1x_coco.py', 'epoch_12.pth')
    >>> inferencer('street.jpg', skip='TTFF')
    >>> inferencer('drive.mp4', budget_ms=35, out_dir='outputs')

    Threads may call one inferencer at the same time, each with its own depth.

    Args:
        model: as in :class:`~adn_mmdet.inference.strict.StrictInferencer`.
        weights: as there.
        device: as there.
        sub_nets: the ``sub_nets.json`` of tools/test.py, or the work folder that holds it: the AP that budgets go by,
            and the depths that they choose from. None goes by the number of blocks that a depth runs.
        metric: which AP of that file.
        images: a folder of images that depths are timed on, since what is detected decides the time; None takes the
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
        self.worth = self._worth_of_depths(sub_nets, metric)
        self.fronts: dict[int, list[Point]] = {}  # by batch size: the depths worth running
        self._calibrating = threading.Lock()

    def __call__(
        self,
        inputs: Image | Video | Sequence[Image],
        batch_size: int = 1,
        *,
        skip: Skip | None = None,
        budget_ms: float | None = None,
        **kwargs: Any,
    ) -> dict[str, list[Any]]:
        """Detect.

        Args:
            inputs: as in DetInferencer, or a video.
            batch_size: images a forward.
            skip: the depth; None takes that of ``budget_ms``, else of ``using_skip``, else the stored one.
            budget_ms: the most milliseconds that a forward may take, from preprocessed images to detections, as
                measured by :meth:`calibrate`; the best depth within it runs.
            **kwargs: those of DetInferencer, such as ``out_dir``.

        Returns:
            That of StrictInferencer; a prediction has its ``skip`` as well.

        Raises:
            UserError: for whatever a user can get wrong.
        """
        images = self._inputs_to_list(inputs)  # what is wrong with them is said before a calibration
        code = self.choose(skip, budget_ms, batch_size)
        with self.backbone.using_skip(code) if self.backbone and code else nullcontext():
            return super().__call__(images, batch_size, **kwargs)

    def choose(
        self, skip: Skip | None = None, budget_ms: float | None = None, batch_size: int = 1
    ) -> SkipConfig | None:
        """The depth that a call with these arguments runs; None for a detector that has no depth to choose.

        Raises:
            UserError: a code that is not valid, a budget that no depth keeps, both, or a depth that is untrained.
        """
        if self.backbone is None:
            if skip is not None or budget_ms is not None:
                kind = type(self.model.backbone).__name__
                raise UserError(f'{kind} has no depth to choose: leave skip and budget_ms out')
            return None
        if skip is not None and budget_ms is not None:
            raise UserError(f'skip={skip} and budget_ms={budget_ms} were both given: give one of them')
        code = self.backbone.resolve_skip(skip)
        if (any(code) or budget_ms is not None) and self.backbone.num_untrained_norms and not self.allow_untrained:
            raise UserError(
                f'{self.weights} has no skip-aware norms, so that skipped depths are untrained: '
                f'run {SkipConfig.super_net(len(code))}, or allow them (allow_untrained=True, --allow-untrained)'
            )
        return code if budget_ms is None else self._best_within(budget_ms, batch_size)

    def calibrate(
        self, input_size: tuple[int, int] | None = None, batch_size: int = 1, rounds: int = 20
    ) -> list[dict[str, Any]]:
        """Measure this device's latency of each depth, or find it in the cache; budgets go by it from then on.

        Args:
            input_size: height and width of what the network sees, after resizing; None takes that of the last call,
                at first that of the config's test pipeline.
            batch_size: images a forward; each has its own calibration.
            rounds: timed forwards of each depth, in turn.

        Returns:
            One row a depth, with the keys of :class:`~adn_mmdet.cost.latency.LatencyRow`.

        Raises:
            UserError: numbers that are not positive, or a detector that has no depth to choose.
        """
        find_backbone(self.model)
        size = self.input_size if input_size is None else input_size
        require_size(size)
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
            rows = calibrate(self.model, list(self.worth), run, images, self.cfg.model, self.cache_dir)
            self.input_size = size
            worth = {str(code): value for code, value in self.worth.items()}
            self.fronts[batch_size] = pareto_front(Point(row['ms'], worth[row['skip']], row['skip']) for row in rows)
        return rows

    def _best_within(self, budget_ms: float, batch_size: int) -> SkipConfig:
        if not isinstance(budget_ms, Real) or not (math.isfinite(budget_ms) and budget_ms > 0):
            raise UserError(f'budget_ms should be a positive number of milliseconds, but got {budget_ms!r}')
        if batch_size not in self.fronts:
            self.calibrate(batch_size=batch_size)
        return SkipConfig.parse(best_under_budget(self.fronts[batch_size], budget_ms).skip)

    def _worth_of_depths(self, sub_nets: str | os.PathLike[str] | None, metric: str) -> dict[SkipConfig, float]:
        if sub_nets is None:
            known = worth_in_file(self.model, metric) if isinstance(self.model, Artifact) else {}
            return known or (worth_by_depth(self.backbone) if self.backbone else {})
        backbone = find_backbone(self.model)
        return worth_by_accuracy(sub_nets, self.checkpoint_sha256, backbone.num_stages, metric)

    @cached_property
    def checkpoint_sha256(self) -> str | None:
        """The hash of the weights' file; None where there is no file, such as in a remote storage."""
        if isinstance(self.model, Artifact):
            return self.model.facts['checkpoint_sha256']
        return file_sha256(self.weights) if os.path.isfile(self.weights) else None

    def forward(self, inputs: dict[str, Any], **kwargs: Any) -> list[DetDataSample]:
        """Run the detector on one batch, at the depth of this context; each result knows its ``skip`` and ``ms``."""
        predictions = super().forward(inputs, **kwargs)
        for prediction in predictions:
            prediction.set_metainfo(dict(skip=str(self.backbone.resolve_skip()) if self.backbone else None))
        return predictions
