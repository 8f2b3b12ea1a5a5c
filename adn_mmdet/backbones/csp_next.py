"""CSPNeXt of RTMDet and CSPDarknet of YOLOX, of any depth: the skippable blocks are those of a stage's CSP layer."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.models.backbones import CSPDarknet, CSPNeXt
from mmdet.models.layers import CSPLayer
from mmdet.models.layers.csp_layer import CSPNeXtBlock, DarknetBottleneck
from mmengine.registry import MODELS
from torch import Tensor, cat, nn

from .adaptive_depth import AdaptiveDepthBackbone, MixIn, Skip, Stage, SubPaths
from .mobilenet_v2 import AdaptiveDepthConv, AdaptiveDepthSequence
from .sharing import as_output, run_once


class AdaptiveDepthSeparableConv(DepthwiseSeparableConvModule):
    """mmcv's depthwise separable convolution whose ``forward(x, skip)`` picks its norms."""

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run both convolutions, (N, C, H, W) to (N, C', H', W')."""
        return self.pointwise_conv(self.depthwise_conv(x, skip), skip)


class _Block(MixIn):
    """A block of two convolutions whose ``forward(x, skip)`` picks its norms."""

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the block, (N, C, H, W) to the same shape."""
        out = self.conv2(self.conv1(x, skip), skip)
        return out + x if self.add_identity else out


class AdaptiveDepthCSPNeXtBlock(_Block, CSPNeXtBlock):
    """The block of CSPNeXt."""


class AdaptiveDepthDarknetBottleneck(_Block, DarknetBottleneck):
    """The block of CSPDarknet."""


class AdaptiveDepthCSPLayer(CSPLayer):
    """mmdet's CSPLayer whose ``forward(x, skip)`` leaves out its skippable blocks.

    The width that it concatenates does not depend on the number of blocks. All of its norms that are not in skippable
    blocks are switched, those of the 1×1 convolutions around the blocks as well.
    """

    @property
    def sub_paths(self) -> SubPaths:
        """Its modules with norms to switch, and its skippable blocks."""
        convs = [self.main_conv, self.short_conv, self.final_conv]
        return SubPaths([*convs, *self.blocks.mandatory], self.blocks.skippable)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the layer, (N, C, H, W) to (N, C', H, W), without its skippable blocks if ``skip``."""
        main = self.blocks(self.main_conv(x, skip), skip)
        both = cat((main, self.short_conv(x, skip)), dim=1)
        return self.final_conv(self.attention(both) if self.channel_attention else both, skip)


CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    ConvModule: AdaptiveDepthConv,
    DepthwiseSeparableConvModule: AdaptiveDepthSeparableConv,
    CSPNeXtBlock: AdaptiveDepthCSPNeXtBlock,
    DarknetBottleneck: AdaptiveDepthDarknetBottleneck,
    CSPLayer: AdaptiveDepthCSPLayer,
}


def make_skippable(layer: CSPLayer) -> None:
    """Give a CSP layer, and what is in it, the classes whose ``forward`` takes a skip."""
    for module in layer.modules():
        module.__class__ = CLASSES.get(type(module), type(module))
    layer.blocks.__class__ = AdaptiveDepthSequence


class AdaptiveDepthCSPStage(Stage, nn.Sequential):
    """A convolution that halves the size, pyramid pooling in the last stage, and a CSP layer."""

    @property
    def layer(self) -> AdaptiveDepthCSPLayer:
        """The CSP layer."""
        return list(self.children())[-1]  # type: ignore[return-value]

    @property
    def blocks_in_order(self) -> list[Any]:
        """The blocks of the CSP layer, first to last."""
        return self.layer.blocks.blocks_in_order

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the stage, (N, C, H, W) to (N, C', H / 2, W / 2), without its skippable sub-path if ``skip``."""
        *before, layer = self.children()
        for module in before:
            x = module(x)
        return layer(x, skip)


class _AdaptiveDepthCSP(AdaptiveDepthBackbone):
    """What CSPNeXt and CSPDarknet have in common."""

    def __init__(self, *args: Any, skip: Skip | None = None, skip_aware_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for stage in self.stages:
            stage.__class__ = AdaptiveDepthCSPStage
            make_skippable(stage.layer)
        self.num_stages = len(self.stages)
        self.make_adaptive(skip, skip_aware_norm)

    @property
    def stages(self) -> list[Any]:
        """The stages, first to last."""
        return [getattr(self, name) for name in self.layers[1:]]

    @property
    def sub_paths(self) -> list[SubPaths]:
        """What each letter of a code governs, first to last."""
        return [stage.layer.sub_paths for stage in self.stages]

    def forward(self, x: Tensor, skip: Skip | None = None) -> tuple[Tensor, ...]:
        """Run one sub-network.

        Args:
            x: images, (N, 3, H, W).
            skip: the sub-network; None takes that of ``using_skip``, else the stored one.

        Returns:
            The outputs of stem (0) and stages (1 …) in ``out_indices``, each (N, C, H / stride, W / stride).
        """
        x = run_once(self, self.stem, x)
        outputs = [as_output(self, x, 0)] if 0 in self.out_indices else []
        for index, (stage, flag) in enumerate(zip(self.stages, self.resolve_skip(skip)), 1):
            x = run_once(self, stage, x, flag)
            if index in self.out_indices:
                outputs.append(as_output(self, x, index))
        return tuple(outputs)


@MODELS.register_module()
class AdaptiveDepthCSPNeXt(_AdaptiveDepthCSP, CSPNeXt):
    """mmdet's CSPNeXt (RTMDet, arXiv 2212.07784) whose depth is a run-time setting.

    With nothing skipped it is mmdet's CSPNeXt to the bit and has its state_dict keys; the second set of norms adds
    ``stageS.B.*.bn_skip.*`` in the CSP layers. Of their blocks the first half, rounded up, always runs: 1, 2, 2, 1 of
    2, 4, 4, 2 in RTMDet-m, 1, 1, 1, 1 of 1, 2, 2, 1 in RTMDet-s, where the letter of a layer of one block picks its
    norms alone. The blocks of the last stage have no identity shortcut.

    Args:
        skip: the stored skip configuration, such as ``'TTFF'``; None is the super-net.
        skip_aware_norm: whether there is a second set of norms.
        **kwargs: those of :class:`mmdet.models.CSPNeXt`; ``arch='P6'`` has five letters, which the
            scripts cannot be told.

    Raises:
        UserError: a skip that is not a code of one letter a stage.
    """


@MODELS.register_module()
class AdaptiveDepthCSPDarknet(_AdaptiveDepthCSP, CSPDarknet):
    """mmdet's CSPDarknet (YOLOX) whose depth is a run-time setting, as :class:`AdaptiveDepthCSPNeXt`'s is."""
