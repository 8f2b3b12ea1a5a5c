"""SkippableCSP: a neck of CSP layers, as of RTMDet and YOLOX, whose last blocks can be skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.layers import CSPLayer
from mmengine.registry import MODELS
from torch import nn

from ..backbones.adaptive_depth import SubPaths
from ..errors import UserError
from .part import Part


@MODELS.register_module()
class SkippableCSP(Part):
    """The blocks of a neck's CSP layers, as of CSPNeXtPAFPN and YOLOXPAFPN.

    What a CSP layer concatenates has the same width without some of its blocks, or without all. Every batch norm of the
    neck that is not in a skippable block is switched: those of kept blocks and of the 1×1 convolutions around them, of
    the convolutions between layers, and of the outputs, since the statistics of all of them depend on what is skipped.

    Args:
        of: attribute path of the neck.
        keep: blocks of each layer that always run; 0 leaves the 1×1 convolutions alone.
        skip_aware_norm: whether there is a second set of norms.
    """

    least = 0

    def __init__(self, of: str = 'neck', keep: int = 1, skip_aware_norm: bool = True) -> None:
        super().__init__(of, keep, skip_aware_norm)

    def find(self) -> Sequence[nn.Module]:
        """The blocks of each CSP layer."""
        layers = [module for module in self.module.modules() if isinstance(module, CSPLayer)]
        if not layers:
            raise UserError(
                f'{self.described}: {type(self.module).__name__} has no CSP layers, as CSPNeXtPAFPN and YOLOXPAFPN have'
            )
        return [layer.blocks for layer in layers]

    @property
    def sub_paths(self) -> SubPaths:
        """All convolutions that always run, and the blocks that can be skipped."""
        skippable = super().sub_paths.skippable
        inside = {module for block in skippable for module in block.modules()}
        convs = [module for module in self.module.modules() if isinstance(module, ConvModule) and module not in inside]
        return SubPaths(convs, skippable)

    def cut(self, config: dict[str, Any]) -> None:
        """Build no more than ``keep`` blocks."""
        config['num_csp_blocks'] = self.keep
