"""SkippableLayers: the encoder or the decoder of a DETR, of whose layers the last ones can be skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.models.layers import DABDetrTransformerDecoder, DetrTransformerDecoder, Mask2FormerTransformerDecoder
from mmengine.model import ModuleList
from mmengine.registry import MODELS
from torch import nn

from ..backbones.adaptive_depth import AdaptiveDepthBackbone, MixIn, SubPaths, norm_at
from ..errors import UserError
from .items import Skippable
from .part import Part

#: Lists of a head with one entry a decoder layer, after which stands, in two-stage detectors, that of the proposals.
BRANCHES = ('cls_branches', 'reg_branches', 'aux_cls_branches', 'aux_reg_branches')


class _Layers(Skippable):
    """The layers of an encoder or decoder, which say how many of them run (DDQ asks)."""

    def __len__(self) -> int:
        return self.part.keep if self.part.is_skipped() else len(self._modules)


class _Norms(MixIn):
    """The norms of a layer by number, those of the second set while the part is skipped."""

    part: Part

    @property
    def norm_names(self) -> list[str]:
        """The names of the first set: ``0``, ``1`` …"""
        return [name for name in self._modules if name.isdecimal()]

    def __getitem__(self, index: int) -> Any:
        return norm_at(self, self.norm_names[index], self.part.is_skipped())

    def __len__(self) -> int:
        return len(self.norm_names)

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[index] for index in range(len(self)))


class SkippableLayerList(_Layers, ModuleList):
    """Layers in mmengine's list."""


class SkippablePlainLayerList(_Layers, nn.ModuleList):
    """Layers in torch's list, as of Conditional DETR's decoder."""


class SkipAwareNorms(_Norms, ModuleList):  # type: ignore[misc]
    """Norms in mmengine's list."""


class SkipAwarePlainNorms(_Norms, nn.ModuleList):  # type: ignore[misc]
    """Norms in torch's list."""


LAYERS = {ModuleList: SkippableLayerList, nn.ModuleList: SkippablePlainLayerList}
NORMS = {ModuleList: SkipAwareNorms, nn.ModuleList: SkipAwarePlainNorms}


@MODELS.register_module()
class SkippableLayers(Part):
    """The layers of a transformer encoder or decoder, which it iterates over.

    The kept layers of an encoder hand over a memory that the others would have refined, or not, so that their layer
    norms have a second set, as those of the paper's transformers have. A decoder is another matter: each of its layers
    is trained with truth, by prediction heads of its own, and runs alike whatever follows it, so that the first ones
    are a decoder in the weights of any DETR. There ``skip_aware_norm=False`` adds nothing that would need training.

    ``num_layers`` stays what it is: two-stage detectors find the heads of their proposals by it.

    Args:
        of: attribute path of the encoder or decoder.
        keep: how many layers always run, 1 or more and not all.
        skip_aware_norm: whether the norms of kept layers have a second set, used when the part is skipped.
    """

    def __init__(self, of: str, keep: int = 3, skip_aware_norm: bool = True) -> None:
        super().__init__(of, keep, skip_aware_norm)
        self.branches: dict[str, Any] = {}

    def attach(self, detector: nn.Module, backbone: AdaptiveDepthBackbone) -> None:
        """Make the layers skippable, and the prediction heads of a decoder's with them; see :meth:`Part.attach`."""
        super().attach(detector, backbone)
        head = getattr(detector, 'bbox_head', None)
        if isinstance(self.module, DetrTransformerDecoder):
            self.branches = {name: getattr(head, name) for name in BRANCHES if hasattr(head, name)}

    def find(self) -> Sequence[nn.Module]:
        """The list of layers."""
        layers: Any = getattr(self.module, 'layers', None)
        if type(layers) not in LAYERS or isinstance(
            self.module, (DABDetrTransformerDecoder, Mask2FormerTransformerDecoder)
        ):
            raise UserError(
                f'{self.described}: {type(self.module).__name__} does not iterate over its layers alone, as the '
                'encoders of DETRs do, and the decoders of DETR, Conditional and Deformable DETR, DINO and DDQ'
            )
        return [layers]

    def own(self, module: nn.Module) -> None:
        """Let the list of layers, and the lists of norms in them, ask this part whether it is skipped."""
        if module in self.sequences:
            module.__class__ = LAYERS[type(module)]
        elif type(module) in NORMS and all(isinstance(norm, nn.LayerNorm) for norm in module.children()):
            module.__class__ = NORMS[type(module)]
        else:
            return
        module.part = self  # type: ignore[assignment]  # no module, so that it has no name in the detector

    @property
    def sub_paths(self) -> SubPaths:
        """The layers, with the prediction heads of those that can be skipped."""
        layers = super().sub_paths
        end = self.keep + len(layers.skippable)
        heads = [
            branch
            for branches in self.branches.values()
            for branch in list(branches.children())[self.keep : end]
            if branch is not branches[0]  # without box refinement all layers have one
        ]
        return SubPaths(layers.mandatory, [*layers.skippable, *heads])

    def cut(self, config: dict[str, Any]) -> None:
        """Build no more than ``keep`` layers."""
        config['num_layers'] = self.keep

    def stock_key(self, key: str) -> str | None:
        """Of a decoder's prediction heads those of the kept layers, and that of the proposals, which comes next."""
        found = re.fullmatch(rf'bbox_head\.({"|".join(self.branches)})\.(\d+)(\..*)', key) if self.branches else None
        if found is None:
            return key
        name, number, rest = found[1], int(found[2]), found[3]
        skipped = len(self.sequences[0]._modules) - self.keep
        if self.keep <= number < self.keep + skipped:
            return None
        return f'bbox_head.{name}.{number if number < self.keep else number - skipped}{rest}'
