"""MobileNetV2 backbones: of any depth, by a code of five letters (AdaptiveDepthMobileNetV2), and of chosen blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.backbones.mobilenet_v2 import MobileNetV2
from mmdet.models.layers import InvertedResidual
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils import checkpoint

from ..errors import UserError
from .adaptive_depth import AdaptiveDepthBackbone, Skip, Stage, SubPaths, norm_at
from .sharing import as_output, run_once


class AdaptiveDepthConv(ConvModule):
    """mmcv's ConvModule whose ``forward(x, skip)`` picks its norm."""

    @property
    def norm_names(self) -> tuple[str, ...]:
        """The norm to switch, if there is one."""
        return (self.norm_name,) if self.with_norm else ()

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run convolution, norm and activation, (N, C, H, W) to (N, C', H', W')."""
        x = super().forward(x, activate=False, norm=False)
        if self.with_norm:
            x = norm_at(self, self.norm_name, skip)(x)
        return self.activate(x) if self.with_activation else x


class AdaptiveDepthInvertedResidual(InvertedResidual):
    """mmdet's InvertedResidual whose ``forward(x, skip)`` picks its set of norms."""

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the block, (N, C, H, W) to (N, C', H / stride, W / stride)."""

        def run(x: Tensor) -> Tensor:
            out = self.expand_conv(x, skip) if self.with_expand_conv else x
            out = self.linear_conv(self.depthwise_conv(out, skip), skip)
            return x + self.drop_path(out) if self.with_res_shortcut else out

        if self.with_cp and x.requires_grad:
            return checkpoint.checkpoint(run, x, use_reentrant=False)
        return run(x)


class AdaptiveDepthSequence(Stage, nn.Sequential):
    """The blocks of one width: a mandatory sub-path, then a skippable one."""


@MODELS.register_module()
class AdaptiveDepthMobileNetV2(AdaptiveDepthBackbone, MobileNetV2):
    """MobileNetV2 whose depth is a run-time setting (arXiv 2312.16392, section 3), by a code of **five** letters.

    They govern layer2 to layer6, of 2, 3, 4, 3, 3 blocks. Every norm that is not in a skippable block is switched: the
    first convolution and layer1 go by the first letter, layer7 and the last convolution by the fifth. With nothing
    skipped it is mmdet's MobileNetV2 to the bit and has its state_dict keys; the second set adds ``*.bn_skip.*``.

    Args:
        skip: the stored skip configuration, such as ``'TTFFF'``; None is the super-net.
        skip_aware_norm: whether there is a second set of norms.
        **kwargs: those of :class:`mmdet.models.MobileNetV2`. What follows the last of ``out_indices`` is not run, and
            is frozen, for DDP waits for the gradients of what is not.

    Raises:
        UserError: a skip that is not a code of five letters.
    """

    num_stages = 5

    def __init__(self, *, skip: Skip | None = None, skip_aware_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for module in self.modules():
            if type(module) is ConvModule:
                module.__class__ = AdaptiveDepthConv
            elif type(module) is InvertedResidual:
                module.__class__ = AdaptiveDepthInvertedResidual
        for name in self.layers[:-1]:
            getattr(self, name).__class__ = AdaptiveDepthSequence
        self.make_adaptive(skip, skip_aware_norm)
        for name in self.layers[max(self.out_indices) + 1 :]:
            getattr(self, name).requires_grad_(False)

    @property
    def stages(self) -> list[Any]:
        """One module a letter: layer2 to layer6."""
        return self.compilable[2:7]

    @property
    def compilable(self) -> list[Any]:
        """All that runs, first to last: conv1, layer1 to layer7, conv2."""
        return [self.conv1, *(getattr(self, name) for name in self.layers)]

    @property
    def letters(self) -> list[int]:
        """The index of the letter that each of these goes by."""
        return [min(max(index - 2, 0), self.num_stages - 1) for index in range(len(self.layers) + 1)]

    @property
    def sub_paths(self) -> list[SubPaths]:
        """What each letter of a code governs, first to last."""
        paths = [SubPaths([], []) for _ in range(self.num_stages)]
        for part, letter in zip(self.compilable, self.letters):
            paths[letter].mandatory.extend(part.mandatory if isinstance(part, Stage) else [part])
            paths[letter].skippable.extend(part.skippable if isinstance(part, Stage) else [])
        return paths

    def forward(self, x: Tensor, skip: Skip | None = None) -> tuple[Tensor, ...]:
        """Run one sub-network.

        Args:
            x: images, (N, 3, H, W).
            skip: the sub-network; None takes that of ``using_skip``, else the stored one.

        Returns:
            The outputs of layer1 … layer7 and the last convolution (7) that are in ``out_indices``.
        """
        flags = self.resolve_skip(skip).flags
        outputs = []
        used = self.compilable[: max(self.out_indices) + 2]
        for index, (part, letter) in enumerate(zip(used, self.letters), -1):
            x = run_once(self, part, x, flags[letter])
            if index in self.out_indices:
                outputs.append(as_output(self, x, index))
        return tuple(outputs)


@MODELS.register_module()
class ShallowMobileNetV2(MobileNetV2):
    """MobileNetV2 of chosen blocks: the individually trained counterpart of one sub-network.

    Args:
        stage_blocks: blocks of layer2 to layer6; (1, 2, 2, 2, 2) is the base-net.
        **kwargs: those of :class:`mmdet.models.MobileNetV2`.

    Raises:
        UserError: ``stage_blocks`` is not five positive numbers.
    """

    def __init__(self, *, stage_blocks: Sequence[int], **kwargs: Any) -> None:
        if len(stage_blocks) != 5 or min(stage_blocks) < 1:
            raise UserError(f'stage_blocks should be 5 positive numbers, but got {tuple(stage_blocks)}')
        numbers = (1, *stage_blocks, 1)
        settings = zip(MobileNetV2.arch_settings, numbers, strict=True)
        self.arch_settings = [[ratio, width, number, stride] for (ratio, width, _, stride), number in settings]
        super().__init__(**kwargs)

    def train(self, mode: bool = True) -> ShallowMobileNetV2:
        """Set the mode as mmdet does, and return self as torch does (mmdet's returns None)."""
        super().train(mode)
        return self
