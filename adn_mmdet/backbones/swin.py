"""Swin Transformer of any depth: AdaptiveDepthSwin, on mmdet's class for detection and on mmpretrain's for ImageNet."""

from __future__ import annotations

from typing import Any

from mmdet.models.backbones import swin as detection
from mmdet.models.layers import PatchMerging
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import UserError
from .adaptive_depth import AdaptiveDepthBackbone, MixIn, Skip, Stage, SubPaths, norm_at
from .sharing import as_output, run_once
from .transformer import AdaptiveDepthTransformerBlock


class _Block(AdaptiveDepthTransformerBlock):
    norm_names = ('norm1', 'norm2')

    def attend(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        return self.attn(x, hw)


class _Merging(MixIn):
    """Patch merging whose ``forward(x, skip)`` picks its norm, which is that of the stage that follows."""

    @property
    def norm_names(self) -> tuple[str, ...]:
        return ('norm',) if self.norm is not None else ()

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Halve the map, (N, C, H, W) to (N, 2 C, H / 2, W / 2)."""
        if (pad := getattr(self, 'adap_padding', None) or getattr(self, 'adaptive_padding', None)) is not None:
            x = pad(x)
        sampler, (height, width) = self.sampler, x.shape[-2:]
        x = sampler(x).transpose(1, 2)
        if self.norm is not None:
            x = norm_at(self, 'norm', skip)(x)
        return _as_map(self.reduction(x), (_steps(sampler, height, 0), _steps(sampler, width, 1)))


def _as_map(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Tokens as a map of the same memory, (N, L, C) to (N, C, H, W)."""
    return x.transpose(1, 2).unflatten(2, hw)


def _steps(sampler: nn.Unfold, size: int, axis: int) -> int:
    """How many windows a sampler takes along an axis of an image."""
    kernel, stride, padding, dilation = (
        value[axis] if isinstance(value, tuple) else value
        for value in (sampler.kernel_size, sampler.stride, sampler.padding, sampler.dilation)
    )
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class _Stage(Stage):
    @property
    def blocks_in_order(self) -> list[Any]:
        return list(self.blocks)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the blocks, (N, C, H, W) to (N, C, H, W), without the skippable ones if ``skip``."""
        hw = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)
        for block in self.mandatory if skip else self.blocks_in_order:
            x = block(x, hw, skip)
        return _as_map(x, hw)


class _AdaptiveDepthSwin(AdaptiveDepthBackbone):
    """What the two have in common."""

    resized_at_load = ('absolute_pos_embed', 'relative_position_bias_table', 'relative_position_index')
    kinds: tuple[type[nn.Module], type[nn.Module], type[nn.Module]]  # a stage, its blocks, the merging after it

    def __init__(self, *args: Any, skip: Skip | None = None, skip_aware_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.stages) != self.num_stages:
            raise UserError(f'depths should be of {self.num_stages} stages, but got {len(self.stages)}')
        for stage in self.stages:
            stage.__class__, block_class, merging_class = self.kinds
            for block in stage.blocks:
                block.__class__ = block_class
                block.take_out('drop')
            if stage.downsample is not None:
                stage.downsample.__class__ = merging_class
        self.make_adaptive(skip, skip_aware_norm)

    @property
    def sub_paths(self) -> list[SubPaths]:
        """What each letter of a code governs, first to last."""
        mergings = [[], *([stage.downsample] for stage in self.stages[:-1])]
        return [SubPaths([*before, *stage.mandatory], stage.skippable) for before, stage in zip(mergings, self.stages)]

    def forward(self, x: Tensor, skip: Skip | None = None) -> tuple[Tensor, ...]:
        """Run one sub-network.

        Args:
            x: images, (N, 3, H, W).
            skip: the sub-network; None takes that of ``using_skip``, else the stored one.

        Returns:
            The outputs of the stages in ``out_indices``, each (N, C, H / stride, W / stride).
        """
        x = run_once(self, self.run_stem, x)
        outputs = []
        for index, (stage, flag) in enumerate(zip(self.stages, self.resolve_skip(skip))):
            if index:
                x = run_once(self, self.stages[index - 1].downsample, x, flag)
            x = run_once(self, stage, x, flag)
            if index in self.out_indices:
                outputs.append(as_output(self, run_once(self, self.run_output, x, index), index))
        return tuple(outputs)

    def run_stem(self, x: Tensor) -> Tensor:
        """Run what comes before the stages, (N, 3, H, W) to (N, C, H / 4, W / 4)."""
        x, hw = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = self.add_position(x, hw)
        return _as_map(self.drop_after_pos(x), hw)

    def add_position(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Add the absolute position embedding, (N, L, C) to (N, L, C)."""
        return x + self.absolute_pos_embed

    def run_output(self, x: Tensor, stage: int) -> Tensor:
        """Norm what a stage returns, (N, C, H, W) to (N, C, H, W)."""
        return getattr(self, f'norm{stage}')(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for key in ('norm.weight', 'norm.bias'):  # as old files of mmpretrain and Microsoft's name the last norm
            if prefix + key in state_dict:
                state_dict[f'{prefix}norm{self.num_stages - 1}{key.removeprefix("norm")}'] = state_dict.pop(
                    prefix + key
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class DetectionBlock(_Block, detection.SwinBlock):
    """mmdet's SwinBlock whose ``forward(x, hw, skip)`` picks its norms."""


class DetectionMerging(_Merging, PatchMerging):
    """mmdet's PatchMerging whose ``forward(x, skip)`` picks its norm."""


class DetectionStage(_Stage, detection.SwinBlockSequence):
    """mmdet's SwinBlockSequence: a mandatory sub-path, then a skippable one."""


@MODELS.register_module()
class AdaptiveDepthSwin(_AdaptiveDepthSwin, detection.SwinTransformer):
    """Swin Transformer whose depth is a run-time setting (arXiv 2312.16392, section 3); Swin-T by default.

    With nothing skipped it is mmdet's SwinTransformer to the bit and has its state_dict keys. The second set of norms
    adds ``norm{1,2}_skip`` of mandatory blocks and ``downsample.norm_skip``, which goes by the letter of the stage
    that follows. The norms of the patch embedding and of the outputs are shared. While a stage is skipped stochastic
    depth is off in its mandatory blocks. In mmpretrain's scope the name stands for :class:`ImageNetSwin`.

    Args:
        skip: the stored skip configuration, such as ``'TTFF'``; None is the super-net.
        skip_aware_norm: whether there is a second set of norms.
        **kwargs: those of :class:`mmdet.models.SwinTransformer`. Besides weights of Microsoft's names
            (``convert_weights``) it starts from bare files, such as those of ``tools/convert_checkpoint.py``.

    Raises:
        UserError: another number of stages than four, or a skip that is not a code of four letters.
    """

    kinds = DetectionStage, DetectionBlock, DetectionMerging

    def init_weights(self) -> None:
        """Start from ``init_cfg``; mmdet's own way finds only names that begin with ``backbone.``."""
        if self.init_cfg and not self.convert_weights:
            BaseModule.init_weights(self)
        else:
            super().init_weights()


try:
    from mmcv.cnn.bricks import transformer as mmcv_transformer
    from mmpretrain.models.backbones import swin_transformer as imagenet
    from mmpretrain.models.utils import resize_pos_embed
    from mmpretrain.registry import MODELS as PRETRAIN_MODELS
except ImportError:  # without the extra `cls` there is no classifier to build it for
    pass
else:

    class ImageNetBlock(_Block, imagenet.SwinBlock):
        """mmpretrain's SwinBlock whose ``forward(x, hw, skip)`` picks its norms."""

    class ImageNetMerging(_Merging, mmcv_transformer.PatchMerging):
        """mmcv's PatchMerging whose ``forward(x, skip)`` picks its norm."""

    class ImageNetStage(_Stage, imagenet.SwinBlockSequence):
        """mmpretrain's SwinBlockSequence: a mandatory sub-path, then a skippable one."""

    @PRETRAIN_MODELS.register_module(name='AdaptiveDepthSwin')
    class ImageNetSwin(_AdaptiveDepthSwin, imagenet.SwinTransformer):
        """:class:`AdaptiveDepthSwin` on mmpretrain's class, which at ImageNet's 224 pixels is the paper's.

        Where a map is as small as a window mmdet's shifts it, and mmpretrain's does not unless ``pad_small_map=True``.

        Raises:
            UserError: as AdaptiveDepthSwin, or ``out_after_downsample``, whose outputs two letters would govern.
        """

        kinds = ImageNetStage, ImageNetBlock, ImageNetMerging

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if kwargs.get('out_after_downsample'):
                raise UserError('out_after_downsample=True is not for AdaptiveDepthSwin: leave it out')
            super().__init__(*args, **kwargs)

        def add_position(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
            """Add the absolute position embedding, resized to the map, (N, L, C) to (N, L, C)."""
            position = resize_pos_embed(
                self.absolute_pos_embed, self.patch_resolution, hw, self.interpolate_mode, self.num_extra_tokens
            )
            return x + position
