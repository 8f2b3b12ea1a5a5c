"""SubNetValLoop and SubNetTestLoop: mmengine's loops, for several sub-networks in one pass."""

from __future__ import annotations

from typing import Any

from mmengine.registry import LOOPS
from mmengine.runner import Runner, TestLoop, ValLoop

from ..skip_config import SkipConfig
from ..training.stuck_norms import StuckNormsHook
from .sub_nets import SubNetLoop


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
