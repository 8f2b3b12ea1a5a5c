"""SkippableStages: the later stages of a Cascade R-CNN's RoI head, which refine the boxes of the earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.roi_heads import CascadeRoIHead
from mmengine.registry import MODELS
from torch import nn

from ..backbones.adaptive_depth import AdaptiveDepthBackbone
from ..errors import UserError
from .part import TWINS, Part

PER_STAGE = ('bbox_head', 'bbox_roi_extractor', 'mask_head', 'mask_roi_extractor')


class SkippableCascade(CascadeRoIHead):
    """A cascade that has no more stages than its part keeps while that is skipped."""

    part: Part

    @property
    def num_stages(self) -> int:
        """How many stages run."""
        return len(list(self.bbox_head))


TWINS[CascadeRoIHead] = SkippableCascade


@MODELS.register_module()
class SkippableStages(Part):
    """The stages of a ``CascadeRoIHead``, of which the first ``keep`` always run.

    A stage does the same work whether or not others follow, so that it needs no second set of norms. The classes'
    scores are the mean over the stages that run, as in mmdet.

    Args:
        of: where the head is.
        keep: how many stages always run.
    """

    def __init__(self, of: str = 'roi_head', keep: int = 1) -> None:
        super().__init__(of, keep, skip_aware_norm=False)

    def find(self) -> Sequence[nn.Module]:
        """The heads of each stage, and what pools regions for them."""
        if type(self.module) is not CascadeRoIHead:
            raise UserError(f'{self.described}: {type(self.module).__name__} has no stages: give a CascadeRoIHead')
        lists = [getattr(self.module, name, None) for name in PER_STAGE]
        return list(dict.fromkeys(each for each in lists if each is not None))

    def attach(self, detector: nn.Module, backbone: AdaptiveDepthBackbone) -> None:
        """As for any part; the head itself says how many stages there are."""
        super().attach(detector, backbone)
        self.own(self.module)

    def cut(self, config: dict[str, Any]) -> None:
        """Have no more than ``keep`` stages."""
        config['num_stages'] = self.keep
        for name in ('stage_loss_weights', *PER_STAGE):
            if isinstance(config.get(name), (list, tuple)):
                config[name] = config[name][: self.keep]
