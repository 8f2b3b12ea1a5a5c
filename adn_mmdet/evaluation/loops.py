"""SubNetValLoop and SubNetTestLoop: mmengine's loops, for several operating points in one pass over a data loader."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.dist import all_gather_object
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner, TestLoop, ValLoop, autocast

from ..backbones.adaptive_depth import AdaptiveDepthBackbone, Skip, find_backbone
from ..backbones.sharing import sharing
from ..config import coco_dataset
from ..errors import UserError
from ..explain import is_out_of_memory
from ..operating_point import OperatingPoint, parse_numbers
from ..points import PointLike, require_point, using_point
from ..skip_config import Groups, SkipConfig
from ..training.stuck_norms import StuckNormsHook
from .at_sizes import prepare_at
from .coco_metric import use_exact_metrics
from .outputs import outputs_asked
from .shared_proposals import predict_each

Skips = str | Sequence[Skip | None]
Numbers = str | int | Sequence[int]
Predict = Callable[[Sequence[int | None]], list[list[DetDataSample]]]


class SubNetLoop(BaseLoop):
    """Mix-in for mmengine's ValLoop and TestLoop, goes before them: every batch is predicted at each of ``points``.

    Images are read once and preprocessed once a size; stages that sub-networks have in common run once, and so do RPN
    and RoI heads where points differ in the number of proposals alone. The results of several points lie on disk, in
    the work folder, until the data loader ends; then one point is evaluated after the other, and hooks that have an
    ``after_point(runner, point, metrics)`` are told at once. A size that does not fit into the memory is given up, and
    the others go on.

    Hooks see one epoch, and the first point's batch and predictions; in a test a hook that paints (with a
    ``test_out_dir``) sees those of each point. What is painted or dumped goes to a folder or file of each one's own.

    Args:
        runner: as in mmengine's loops.
        dataloader: as there.
        evaluator: as there; the config of a CocoMetric becomes an ExactCocoMetric.
        fp16: as there.
        skips: codes, a comma list of them, or ``all``; None takes the loop's default, ``[None]`` a net that has no
            depth to choose.
        sizes: short sides of the input in pixels, or a comma list of them; None takes the config's own.
        proposals: numbers of region proposals, or a comma list of them; None takes the config's own.
        points: operating points, in place of all products of these three.

    Raises:
        UserError: no code, a code, size or number that is not valid or that the detector does not have, no
            adaptive-depth backbone, or no evaluator.
    """

    runner: Runner
    evaluator: Evaluator
    fp16: bool
    mode: str
    default_codes: Callable[[Groups], list[SkipConfig]]

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        evaluator: Any,
        fp16: bool = False,
        skips: Skips | None = None,
        sizes: Numbers | None = None,
        proposals: Numbers | None = None,
        points: Sequence[PointLike] | None = None,
    ) -> None:
        if points is None:
            codes: Sequence[SkipConfig | None] = [None]
            if skips != [None]:
                groups = find_backbone(runner.model).letter_groups
                codes = self.default_codes(groups) if skips is None else parse_skips(skips, groups)
            points = parse_points(codes, sizes, proposals)
        self.points = [require_point(runner.model, point) for point in points]
        self.given_up: dict[OperatingPoint, str] = {}
        self._pipeline = None
        if any(point.size for point in self.points):
            if not isinstance(dataloader, dict):
                raise UserError(f'sizes need a {self.mode}_dataloader that is a config: give one, or leave sizes out')
            self._pipeline = coco_dataset(dataloader).pipeline
        if not evaluator:
            raise UserError(f'{self.mode}_evaluator is {evaluator}: name at least one metric, such as CocoMetric')
        use_exact_metrics(evaluator)
        super().__init__(runner, dataloader, evaluator, fp16)

    def run(self) -> dict[str, float]:
        """Evaluate all points.

        Returns:
            The metrics of each, named after it (``TTTT/coco/bbox_mAP``); those of the first under their stock names
            (``coco/bbox_mAP``) as well, for ``save_best`` and whatever else reads them.

        Raises:
            UserError: points were given up; all others are evaluated.
        """
        self.runner.call_hook(f'before_{self.mode}')
        self.runner.call_hook(f'before_{self.mode}_epoch')
        self.runner.model.eval()
        if self._pipeline:
            prepare_at(self.dataloader.dataset, self._pipeline, list(dict.fromkeys(p.size for p in self.points)))
        metrics: dict[str, float] = {}
        with contextlib.ExitStack() as files:
            # One alone stays in memory, as in mmengine's loops.
            folder = self.runner.work_dir if len(self.points) > 1 else None
            self._results = {point: files.enter_context(_Results(folder)) for point in self.points if folder}
            for index, batch in enumerate(self.dataloader):
                self.run_iter(index, batch)
            self.given_up = {point: why for each in all_gather_object(self.given_up) for point, why in each.items()}
            for point in self._left():
                with self._at(point):
                    if folder:
                        self._results[point].give(self.evaluator)
                    own = self.evaluator.evaluate(len(self.dataloader.dataset))
                self.runner.call_hook('after_point', point=point, metrics=own)
                if point == self._left()[0]:
                    metrics.update(own)
                if str(point):
                    metrics.update((f'{point}/{name}', value) for name, value in own.items())
        self.runner.call_hook(f'after_{self.mode}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{self.mode}')
        require_none_given_up(self.given_up)
        return metrics

    def _left(self) -> list[OperatingPoint]:
        return [point for point in self.points if point not in self.given_up]

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Predict one batch at each point."""
        batches = data_batch if self._pipeline else {None: data_batch}
        first, *_ = batches.values()
        self.runner.call_hook(f'before_{self.mode}_iter', batch_idx=idx, data_batch=first)
        with autocast(enabled=self.fp16):
            for size, batch in batches.items():
                points = [point for point in self._left() if point.size == size]
                try:
                    self._run_size(idx, batch, points)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error) or len(points) == len(self._left()):
                        raise
                    self.given_up |= dict.fromkeys(points, str(error))

    def _run_size(self, idx: int, batch: Any, points: Sequence[OperatingPoint]) -> None:
        """Predict one batch at points of one size."""
        with self._predictor(batch) as predict:
            for skip in dict.fromkeys(point.skip for point in points):
                alike = [point for point in points if point.skip == skip]
                with self._at(alike[0]):
                    outputs = predict([point.proposals for point in alike])
                for point, samples in zip(alike, outputs, strict=True):
                    self._take(idx, batch, point, samples)

    def _take(self, idx: int, batch: Any, point: OperatingPoint, outputs: Sequence[DetDataSample]) -> None:
        """Hand predictions to the metrics and the hooks."""
        painters = [hook for hook in self.runner.hooks if hasattr(hook, 'test_out_dir')] if self.mode == 'test' else []
        with self._at(point):
            self.evaluator.process(data_samples=outputs, data_batch=batch)
            if point in self._results:
                self._results[point].take(self.evaluator)
            if point == self._left()[0]:
                self.runner.call_hook(f'after_{self.mode}_iter', batch_idx=idx, data_batch=batch, outputs=outputs)
            else:
                for hook in painters:
                    hook.after_test_iter(self.runner, idx, batch, outputs)

    @contextlib.contextmanager
    def _predictor(self, batch: Any) -> Iterator[Predict]:
        """What predicts a batch at the skip in force, with each of some numbers of proposals."""
        model = self.runner.model
        detector = model.module if isinstance(model, MMDistributedDataParallel) else model
        if isinstance(detector, BaseDetector) and len(self.points) > 1:
            with preprocessed_once(detector, batch) as predict:
                yield predict
        else:  # one point, an exported file, or test-time augmentation, where every view is an image of its own
            yield lambda numbers: [self._step(batch, number) for number in numbers]

    def _step(self, batch: Any, proposals: int | None) -> list[DetDataSample]:
        with using_point(self.runner.model, OperatingPoint(proposals=proposals)):
            return getattr(self.runner.model, f'{self.mode}_step')(batch)

    @contextlib.contextmanager
    def _at(self, point: OperatingPoint) -> Iterator[None]:
        """Predict, evaluate and write for one point."""
        outputs = outputs_asked(self.runner, self.evaluator) if len(self.points) > 1 else []
        try:
            for output in outputs:  # mmdet's hooks and metrics read their path at each call, and know no other way
                setattr(output.writer, output.attribute, output.path_of(point))
            with using_point(self.runner.model, point):
                yield
        finally:
            for output in outputs:
                setattr(output.writer, output.attribute, output.path)


class _Results:
    """What the metrics keep of one point, on disk: of many, or with masks, it would fill the memory."""

    def __init__(self, folder: str) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def take(self, evaluator: Evaluator) -> None:
        """Move what a batch has added from the metrics to the file."""
        for metric in evaluator.metrics:
            pickle.dump(zlib.compress(pickle.dumps(metric.results, pickle.HIGHEST_PROTOCOL), 1), self.file)
            metric.results = []

    def give(self, evaluator: Evaluator) -> None:
        """Move all back."""
        end = self.file.tell()
        self.file.seek(0)
        while self.file.tell() < end:
            for metric in evaluator.metrics:
                metric.results += pickle.loads(zlib.decompress(pickle.load(self.file)))


@contextlib.contextmanager
def preprocessed_once(detector: BaseDetector, batch: dict[str, Any]) -> Iterator[Predict]:
    """Yield what predicts a data loader's batch, at the skip in force, with each of some numbers of proposals."""
    data = detector.data_preprocessor(batch, False)
    has_depth = any(isinstance(module, AdaptiveDepthBackbone) for module in detector.modules())
    with sharing(detector) if has_depth else contextlib.nullcontext():
        yield lambda numbers: predict_each(detector, data, numbers)


def parse_skips(skips: Skips, groups: Groups) -> list[SkipConfig]:
    """The codes that a loop's ``skips`` name, each once.

    Raises:
        UserError: there is none, or one is not valid.
    """
    if isinstance(skips, str):
        return SkipConfig.parse_list(skips, groups)
    if not isinstance(skips, Sequence) or not skips:
        raise UserError(f'skips should name at least one code, such as FFFF, but got {skips or "none"}')
    return list(dict.fromkeys(SkipConfig.parse(skip, groups) for skip in skips))  # type: ignore[arg-type]


def parse_points(
    codes: Sequence[SkipConfig | None], sizes: Numbers | None, proposals: Numbers | None
) -> list[OperatingPoint]:
    """The points that codes and a loop's ``sizes`` and ``proposals`` name, each once.

    Raises:
        UserError: a number is not valid.
    """
    return OperatingPoint.product(codes, parse_each('sizes', sizes), parse_each('proposals', proposals))


def parse_each(key: str, given: Numbers | None) -> list[int | None]:
    """The numbers that a loop's ``sizes`` or ``proposals`` name; ``[None]`` for None.

    Raises:
        UserError: one is not valid, or there is none.
    """
    each = given if isinstance(given, (list, tuple)) else [given]
    return parse_numbers({'sizes': 'size'}.get(key, key), None if given is None else ','.join(map(str, each)))


def require_none_given_up(given_up: dict[OperatingPoint, str]) -> None:
    """Raise a UserError that says which points did not fit into the memory, if there are any."""
    if given_up:
        sizes = ', '.join(f'@{size}' for size in dict.fromkeys(point.size for point in given_up) if size)
        reason = ' '.join(next(iter(given_up.values())).split())
        raise UserError(
            f'not enough memory for {len(given_up)} points, at {sizes or "the size of the config"} ({reason:.200}): '
            'take smaller sizes or a smaller batch_size; all other points are done'
        )


@LOOPS.register_module()
class SubNetValLoop(SubNetLoop, ValLoop):
    """Evaluates sub-networks at every validation of a training; without ``skips`` super-net and base-net."""

    mode = 'val'

    @staticmethod
    def default_codes(groups: Groups) -> list[SkipConfig]:
        """Super-net and base-net."""
        return [SkipConfig.super_net(groups), SkipConfig.base_net(groups)]

    def __init__(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        super().__init__(runner, *args, **kwargs)
        runner.register_hook(StuckNormsHook())


@LOOPS.register_module()
class SubNetTestLoop(SubNetLoop, TestLoop):
    """Tests sub-networks; without ``skips`` all of them."""

    mode = 'test'
    default_codes = SkipConfig.all
