"""SubNetValLoop and SubNetTestLoop: mmengine's loops, for several sub-networks in one pass over a data loader."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner, TestLoop, ValLoop, autocast

from ..backbones.adaptive_depth import Skip, find_backbone
from ..backbones.sharing import sharing
from ..errors import UserError
from ..skip_config import SkipConfig
from ..training.stuck_norms import StuckNormsHook
from .coco_metric import use_exact_metrics
from .outputs import outputs_asked

Code = SkipConfig | None  # None: of a net that has no depth to choose


class SubNetLoop(BaseLoop):
    """Mix-in for mmengine's ValLoop and TestLoop, goes before them: every batch is predicted at each of ``codes``.

    Images are read and preprocessed once, and stages that sub-networks have in common run once. The results of several
    codes lie on disk, in the work folder, until the data loader ends; then one sub-network is evaluated after the
    other, and hooks that have an ``after_sub_net(runner, code, metrics)`` are told at once.

    Hooks see one epoch, and the first code's predictions; in a test a hook that paints (with a ``test_out_dir``) sees
    those of each code. What is painted or dumped goes to a folder or file of each code's own.

    Args:
        runner: as in mmengine's loops.
        dataloader: as there.
        evaluator: as there; the config of a CocoMetric becomes an ExactCocoMetric.
        fp16: as there.
        skips: codes, a comma list of them, or ``all``; None takes the loop's default, ``[None]`` a net that has no
            depth to choose.

    Raises:
        UserError: no code, one that is not valid, no adaptive-depth backbone, or no evaluator.
    """

    runner: Runner
    evaluator: Evaluator
    fp16: bool
    mode: str
    default_codes: Callable[[int], list[SkipConfig]]

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        evaluator: Any,
        fp16: bool = False,
        skips: str | Sequence[Skip | None] | None = None,
    ) -> None:
        self.backbone = None if skips == [None] else find_backbone(runner.model)
        self.codes: list[Code] = [None]
        if self.backbone:
            stages = self.backbone.num_stages
            self.codes = [*(self.default_codes(stages) if skips is None else parse_skips(skips, stages))]
        if not evaluator:
            raise UserError(f'{self.mode}_evaluator is {evaluator}: name at least one metric, such as CocoMetric')
        use_exact_metrics(evaluator)
        super().__init__(runner, dataloader, evaluator, fp16)

    def run(self) -> dict[str, float]:
        """Evaluate all sub-networks.

        Returns:
            The metrics of each, named after its code (``TTTT/coco/bbox_mAP``); those of the first under their stock
            names (``coco/bbox_mAP``) as well, for ``save_best`` and whatever else reads them.
        """
        self.runner.call_hook(f'before_{self.mode}')
        self.runner.call_hook(f'before_{self.mode}_epoch')
        self.runner.model.eval()
        metrics: dict[str, float] = {}
        with contextlib.ExitStack() as files:
            # One alone stays in memory, as in mmengine's loops.
            folder = self.runner.work_dir if len(self.codes) > 1 else None
            self._results = {code: files.enter_context(_Results(folder)) for code in self.codes if folder}
            for index, batch in enumerate(self.dataloader):
                self.run_iter(index, batch)
            for code in self.codes:
                with self._at(code):
                    if folder:
                        self._results[code].give(self.evaluator)
                    own = self.evaluator.evaluate(len(self.dataloader.dataset))
                self.runner.call_hook('after_sub_net', code=code, metrics=own)
                if code == self.codes[0]:
                    metrics.update(own)
                if code:
                    metrics.update((f'{code}/{name}', value) for name, value in own.items())
        self.runner.call_hook(f'after_{self.mode}_epoch', metrics=metrics)
        self.runner.call_hook(f'after_{self.mode}')
        return metrics

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Predict one batch at each code."""
        self.runner.call_hook(f'before_{self.mode}_iter', batch_idx=idx, data_batch=data_batch)
        after_iter = f'after_{self.mode}_iter'
        painters = [hook for hook in self.runner.hooks if hasattr(hook, 'test_out_dir')] if self.mode == 'test' else []
        with autocast(enabled=self.fp16), self._predictor(data_batch) as predict:
            for code in self.codes:
                with self._at(code):
                    outputs = predict()
                    self.evaluator.process(data_samples=outputs, data_batch=data_batch)
                    if code in self._results:
                        self._results[code].take(self.evaluator)
                    if code == self.codes[0]:
                        self.runner.call_hook(after_iter, batch_idx=idx, data_batch=data_batch, outputs=outputs)
                    else:
                        for hook in painters:
                            hook.after_test_iter(self.runner, idx, data_batch, outputs)

    @contextlib.contextmanager
    def _predictor(self, batch: Any) -> Iterator[Callable[[], Sequence[DetDataSample]]]:
        """What predicts a batch at the skip in force."""
        model = self.runner.model
        detector = model.module if isinstance(model, MMDistributedDataParallel) else model
        if isinstance(detector, BaseDetector) and len(self.codes) > 1:
            with preprocessed_once(detector, batch) as predict:
                yield predict
        else:  # one depth, or test-time augmentation, where every view is an image of its own
            yield lambda: getattr(model, f'{self.mode}_step')(batch)

    @contextlib.contextmanager
    def _at(self, code: Code) -> Iterator[None]:
        """Predict, evaluate and write for one code."""
        outputs = outputs_asked(self.runner, self.evaluator) if len(self.codes) > 1 else []
        try:
            for output in outputs:  # mmdet's hooks and metrics read their path at each call, and know no other way
                setattr(output.writer, output.attribute, output.path_of(code))
            with self.backbone.using_skip(code) if self.backbone and code else contextlib.nullcontext():
                yield
        finally:
            for output in outputs:
                setattr(output.writer, output.attribute, output.path)


class _Results:
    """What the metrics keep of one sub-network, on disk: of many, or with masks, it would fill the memory."""

    def __init__(self, folder: str) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def take(self, evaluator: Evaluator) -> None:
        """Move what a batch has added from the metrics to the file."""
        for metric in evaluator.metrics:
            pickle.dump(metric.results, self.file, pickle.HIGHEST_PROTOCOL)
            metric.results = []

    def give(self, evaluator: Evaluator) -> None:
        """Move all back."""
        end = self.file.tell()
        self.file.seek(0)
        while self.file.tell() < end:
            for metric in evaluator.metrics:
                metric.results += pickle.load(self.file)


@contextlib.contextmanager
def preprocessed_once(detector: BaseDetector, batch: dict[str, Any]) -> Iterator[Callable[[], list[DetDataSample]]]:
    """Yield what predicts a data loader's batch, at the skip in force, as often as it is called."""
    data = detector.data_preprocessor(batch, False)

    def predict() -> list[DetDataSample]:
        samples = [sample.clone() for sample in data['data_samples']]  # predictions are written into them
        return detector._run_forward({**data, 'data_samples': samples}, mode='predict')

    with sharing(detector):
        yield predict


def parse_skips(skips: str | Sequence[Skip | None], num_stages: int) -> list[SkipConfig]:
    """The codes that a loop's ``skips`` name, each once.

    Raises:
        UserError: there is none, or one is not valid.
    """
    if isinstance(skips, str):
        return SkipConfig.parse_list(skips, num_stages)
    if not isinstance(skips, Sequence) or not skips:
        raise UserError(f'skips should name at least one code, such as FFFF, but got {skips or "none"}')
    return list(dict.fromkeys(SkipConfig.parse(skip, num_stages) for skip in skips))  # type: ignore[arg-type]


@LOOPS.register_module()
class SubNetValLoop(SubNetLoop, ValLoop):
    """Evaluates sub-networks at every validation of a training; without ``skips`` super-net and base-net."""

    mode = 'val'

    @staticmethod
    def default_codes(num_stages: int) -> list[SkipConfig]:
        """Super-net and base-net."""
        return [SkipConfig.super_net(num_stages), SkipConfig.base_net(num_stages)]

    def __init__(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        super().__init__(runner, *args, **kwargs)
        runner.register_hook(StuckNormsHook())


@LOOPS.register_module()
class SubNetTestLoop(SubNetLoop, TestLoop):
    """Tests sub-networks; without ``skips`` all of them."""

    mode = 'test'
    default_codes = SkipConfig.all
