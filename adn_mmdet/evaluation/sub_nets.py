"""One pass over a data loader for several sub-networks of one detector."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import BaseLoop, Runner, autocast

from ..backbones.adaptive_depth import Skip, find_backbone
from ..errors import UserError
from ..skip_config import SkipConfig
from .coco_metric import use_exact_metrics
from .shared_calls import preprocessed_once

Row = dict[str, Any]


class SubNetLoop(BaseLoop):
    """Mix-in for mmengine's ValLoop and TestLoop, goes before them: every batch is predicted at each of ``codes``.

    Images are read and preprocessed once, and stages that sub-networks have in common run once. All codes' results are
    held until the data loader ends; then one sub-network is evaluated after the other, and hooks that have an
    ``after_sub_net(runner, code, metrics)`` are told at once.

    Hooks see one epoch, and the first code's predictions; in a test a hook that paints (with a ``test_out_dir``) sees
    those of each code. What is painted or dumped goes to a folder or file of each code's own.

    Args:
        runner: as in mmengine's loops.
        dataloader: as there.
        evaluator: as there; the config of a CocoMetric becomes an ExactCocoMetric.
        fp16: as there.
        skips: codes, a comma list of them, or ``all``; None takes the loop's default.

    Raises:
        UserError: no code, one that is not valid, or no adaptive-depth backbone.
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
        skips: str | Sequence[Skip] | None = None,
    ) -> None:
        self.backbone = find_backbone(runner.model)
        num_stages = self.backbone.num_stages
        self.codes = self.default_codes(num_stages) if skips is None else _parse(skips, num_stages)
        if isinstance(evaluator, (dict, list)):
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
        self._results: dict[SkipConfig, list[list[Any]]] = {
            code: [[] for _ in self.evaluator.metrics] for code in self.codes
        }
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
        metrics: dict[str, float] = {}
        for code in self.codes:
            with self._at(code):
                own = self.evaluator.evaluate(len(self.dataloader.dataset))
            self.runner.call_hook('after_sub_net', code=code, metrics=own)
            if code == self.codes[0]:
                metrics.update(own)
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
                    if code == self.codes[0]:
                        self.runner.call_hook(after_iter, batch_idx=idx, data_batch=data_batch, outputs=outputs)
                    else:
                        for hook in painters:
                            hook.after_test_iter(self.runner, idx, data_batch, outputs)

    def _predictor(self, batch: Any) -> AbstractContextManager[Callable[[], Sequence[DetDataSample]]]:
        """What predicts a batch at the skip in force."""
        model = self.runner.model
        detector = model.module if isinstance(model, MMDistributedDataParallel) else model
        if isinstance(detector, BaseDetector) and len(self.codes) > 1:
            return preprocessed_once(detector, batch)
        # One depth, or test-time augmentation, where every view is an image of its own.
        return contextlib.nullcontext(lambda: getattr(model, f'{self.mode}_step')(batch))

    @contextlib.contextmanager
    def _at(self, code: SkipConfig) -> Iterator[None]:
        """Predict, and keep results, for one code."""
        for metric, results in zip(self.evaluator.metrics, self._results[code]):
            metric.results = results
        restore = list(outputs_asked(self.runner, self.evaluator)) if len(self.codes) > 1 else []
        for writer, attribute, value in restore:
            path = Path(value).absolute()
            own = path / str(code) if attribute == 'test_out_dir' else path.with_stem(f'{path.stem}_{code}')
            setattr(writer, attribute, str(own))
        try:
            with self.backbone.using_skip(code):
                yield
        finally:
            for writer, attribute, value in restore:
                setattr(writer, attribute, value)


def outputs_asked(runner: Runner, evaluator: Evaluator) -> Iterator[tuple[Any, str, str]]:
    """What a test writes beside its metrics: a hook or metric, the name of its attribute, and the path in it."""
    for writer in (*runner.hooks, *evaluator.metrics):
        for attribute in ('test_out_dir', 'out_file_path', 'outfile_prefix'):
            if path := getattr(writer, attribute, None):
                yield writer, attribute, path


def _parse(skips: str | Sequence[Skip], num_stages: int) -> list[SkipConfig]:
    if isinstance(skips, str):
        return SkipConfig.parse_list(skips, num_stages)
    if not skips:
        raise UserError('skips should name at least one code, such as FFFF, but got none')
    return list(dict.fromkeys(SkipConfig.parse(skip, num_stages) for skip in skips))
