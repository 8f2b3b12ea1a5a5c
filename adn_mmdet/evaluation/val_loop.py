"""SubNetValLoop: evaluates several sub-networks at every validation of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import IterTimerHook
from mmengine.registry import LOOPS
from mmengine.runner import Runner, ValLoop

from ..backbones.adaptive_depth import Skip, find_backbone
from ..errors import UserError
from ..skip_config import SkipConfig
from .run import use_exact_metrics
from .stuck_norms import StuckNormsHook


@LOOPS.register_module()
class SubNetValLoop(ValLoop):
    """mmengine's ValLoop once for each of ``skips``, inside one validation epoch as hooks see it.

    The metrics of every sub-network are named after its code (``TTTT/coco/bbox_mAP``); those of the first keep their
    stock names as well (``coco/bbox_mAP``), for ``save_best`` and whatever else reads them.

    Args:
        runner: as in ValLoop.
        dataloader: as in ValLoop.
        evaluator: as in ValLoop; the config of a CocoMetric becomes an ExactCocoMetric.
        fp16: as in ValLoop.
        skips: codes; None takes super-net and base-net.

    Raises:
        UserError: no code, one that is not valid, or no adaptive-depth backbone.
    """

    def __init__(
        self, runner: Runner, dataloader: Any, evaluator: Any, fp16: bool = False, skips: Sequence[Skip] | None = None
    ) -> None:
        self.backbone = find_backbone(runner.model)
        num_stages = self.backbone.num_stages
        if skips is None:
            skips = SkipConfig.super_net(num_stages), SkipConfig.base_net(num_stages)
        self.codes = list(dict.fromkeys(SkipConfig.parse(skip, num_stages) for skip in skips))
        if not self.codes:
            raise UserError('skips should name at least one code, such as FFFF, but got none')
        if isinstance(evaluator, (dict, list)):
            use_exact_metrics(evaluator)
        super().__init__(runner, dataloader, evaluator, fp16)
        runner.register_hook(StuckNormsHook())

    def run(self) -> dict[str, float]:
        """Launch validation.

        Returns:
            The metrics of all sub-networks.
        """
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        self.runner.model.eval()
        metrics: dict[str, float] = {}
        for code in self.codes:
            with self.backbone.using_skip(code):
                own = self._evaluate()
            if code == self.codes[0]:
                metrics.update(own)
            metrics.update((f'{code}/{name}', value) for name, value in own.items())
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics

    def _evaluate(self) -> dict[str, float]:
        """Run the data loader once."""
        for hook in self.runner.hooks:
            if isinstance(hook, IterTimerHook):
                hook.time_sec_test_val = 0  # its sum of a whole epoch; the eta that it logs is for one code
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
        return self.evaluator.evaluate(len(self.dataloader.dataset))
