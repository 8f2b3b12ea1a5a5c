"""SkippableTower: the stacked convolutions of a dense head, or of a mask head, of which the last can be skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import nn

from ..errors import UserError
from .part import TWINS, Part


@MODELS.register_module()
class SkippableTower(Part):
    """The towers of a head: lists of equal convolutions that it iterates over, such as ``cls_convs`` and ``reg_convs``.

    A convolution of a tower has no identity beside it, so that what follows the tower learns to read its output after
    ``keep`` convolutions as well as after all.
    """

    def find(self) -> Sequence[nn.Module]:
        """The lists of two and more convolutions."""
        lists = [each for each in _lists(self.module) if len(each) > 1]
        towers = [items for items in lists if all(isinstance(item, ConvModule) for item in items)]
        if not towers or self._number not in vars(self.module):
            raise UserError(
                f'{self.described}: {type(self.module).__name__} has no lists of convolutions to skip, as the heads of '
                'GFL, ATSS, FCOS, RetinaNet, RTMDet and YOLOX and FCNMaskHead have'
            )
        for tower in towers:
            convs: list[Any] = list(tower)
            widths = {convs[0].out_channels, *(c.in_channels for c in convs[1:]), *(c.out_channels for c in convs[1:])}
            if len(widths) > 1:
                raise UserError(
                    f'{self.described}: its convolutions have {sorted(widths)} channels, so that none can be left out'
                )
        return towers

    def cut(self, config: dict[str, Any]) -> None:
        """Stack no more than ``keep`` convolutions."""
        config[self._number] = self.keep

    @property
    def _number(self) -> str:
        """What a head calls the number of its convolutions."""
        return 'num_convs' if hasattr(self.module, 'num_convs') else 'stacked_convs'


def _lists(module: nn.Module) -> list[Any]:
    """The lists and sequences in a head, and those in its lists, of which RTMDet and YOLOX have one a level."""
    children = [child for name, child in module.named_children() if name != 'inter_convs']  # TOOD joins their outputs
    own = [child for child in children if type(child) in TWINS and isinstance(child, (nn.ModuleList, nn.Sequential))]
    return list(dict.fromkeys([*own, *(inner for each in own for inner in _lists(each))]))
