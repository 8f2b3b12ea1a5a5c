"""ResNet and its kin: of any depth (AdaptiveDepthResNet, …), and of chosen blocks a stage (ShallowResNet)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.backbones import resnext
from mmdet.models.backbones.regnet import RegNet
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.layers import ResLayer
from mmengine.registry import MODELS
from torch import Tensor
from torch.utils import checkpoint

from ..errors import UserError
from .adaptive_depth import AdaptiveDepthBackbone, MixIn, Skip, Stage, SubPaths, norm_at
from .sharing import as_output, run_once


class _AdaptiveDepthBlock(MixIn):
    """A residual block of mmdet whose ``forward(x, skip)`` picks its set of norms.

    The skip is an argument, not a state, so that activation checkpointing recomputes with the same norms.
    """

    with_plugins = False  # of a BasicBlock

    norm_names: tuple[str, ...]  # of the main branch, first to last; twins are named as in the authors' checkpoints

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the block.

        Args:
            x: (N, C, H, W).
            skip: whether the stage that this block belongs to is skipped.

        Returns:
            (N, expansion * planes, H / stride, W / stride).
        """
        norms = [norm_at(self, name, skip) for name in self.norm_names]

        def residual(x: Tensor) -> Tensor:
            out = x
            for number, norm in enumerate(norms, 1):
                out = norm(getattr(self, f'conv{number}')(out))
                if number < len(norms):
                    out = self.relu(out)
                if self.with_plugins:
                    out = self.forward_plugin(out, getattr(self, f'after_conv{number}_plugin_names'))
            out += x if self.downsample is None else self.downsample(x)
            return out

        if self.with_cp and x.requires_grad:
            return self.relu(checkpoint.checkpoint(residual, x, use_reentrant=False))
        return self.relu(residual(x))


class AdaptiveDepthBasicBlock(_AdaptiveDepthBlock, BasicBlock):
    """The block of ResNet-18 and -34."""


class AdaptiveDepthBottleneck(_AdaptiveDepthBlock, Bottleneck):
    """The block of deeper ResNets."""


class AdaptiveDepthGroupedBottleneck(_AdaptiveDepthBlock, resnext.Bottleneck):
    """The block of ResNeXt and RegNet."""


class AdaptiveDepthStage(Stage, ResLayer):
    """A residual stage: a mandatory sub-path, then a skippable one that only refines its output."""


BLOCKS = {
    BasicBlock: AdaptiveDepthBasicBlock,
    Bottleneck: AdaptiveDepthBottleneck,
    resnext.Bottleneck: AdaptiveDepthGroupedBottleneck,
}


class _AdaptiveDepthResNet(AdaptiveDepthBackbone):
    """What ResNet and its kin have in common."""

    def __init__(self, *args: Any, skip: Skip | None = None, skip_aware_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Classes are given to what mmdet has built: it applies zero_init_residual where a block is of its own class.
        for stage in self.stages:
            stage.__class__ = AdaptiveDepthStage
            for block in stage.children():
                block.__class__ = BLOCKS[type(block)]
                numbered = (getattr(block, f'norm{number}_name', None) for number in (1, 2, 3))
                block.norm_names = tuple(filter(None, numbered))
            for block in stage.mandatory if skip_aware_norm else ():
                if block.init_cfg:  # zero_init_residual, which must reach the last norm of both sets
                    last = f'{block.norm_names[-1]}_skip'
                    block.init_cfg['override'] = [block.init_cfg['override'], dict(name=last)]
        self.make_adaptive(skip, skip_aware_norm)

    @property
    def stages(self) -> list[Any]:
        """The residual stages, first to last."""
        return [getattr(self, name) for name in self.res_layers]

    @property
    def sub_paths(self) -> list[SubPaths]:
        """What each letter of a code governs, first to last."""
        return [SubPaths(stage.mandatory, stage.skippable) for stage in self.stages]

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
            x = run_once(self, stage, x, flag)
            if index in self.out_indices:
                outputs.append(as_output(self, x, index))
        return tuple(outputs)

    def run_stem(self, x: Tensor) -> Tensor:
        """Run what comes before the stages, (N, 3, H, W) to (N, C, H / 4, W / 4)."""
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        return self.maxpool(x)


@MODELS.register_module()
class AdaptiveDepthResNet(_AdaptiveDepthResNet, ResNet):
    """ResNet whose depth is a run-time setting (arXiv 2312.16392, section 3).

    With nothing skipped it is mmdet's ResNet to the bit and has its state_dict keys; the second set of norms adds
    ``layerS.B.bn{1,2,3}_skip.*``. What is not in a mandatory block's main branch has one set of norms for all
    sub-networks: the stem, the shortcuts (``downsample``), plugins and the skippable blocks. In training without
    ``norm_eval`` each pass updates the running statistics of the norms it runs, so that two passes an iteration
    update these shared ones twice.

    Args:
        depth: 18, 34, 50, 101 or 152; the paper's are 50 and 101.
        skip: the stored skip configuration, such as ``'TTFF'``; None is the super-net.
        skip_aware_norm: whether mandatory blocks hold a second set of norms, used when their stage is skipped.
        **kwargs: those of :class:`mmdet.models.ResNet`; ``avg_down=True`` is the authors' vd variant.

    Raises:
        UserError: another depth, or a skip that is not a code of ``num_stages`` letters.
    """

    def __init__(self, depth: int, **kwargs: Any) -> None:
        _require_depth(depth)
        super().__init__(depth=depth, **kwargs)


@MODELS.register_module()
class AdaptiveDepthResNeXt(_AdaptiveDepthResNet, resnext.ResNeXt):
    """mmdet's ResNeXt, any of its depths, whose depth is a run-time setting as :class:`AdaptiveDepthResNet`'s is."""


@MODELS.register_module()
class AdaptiveDepthRegNet(_AdaptiveDepthResNet, RegNet):
    """mmdet's RegNet whose depth is a run-time setting as :class:`AdaptiveDepthResNet`'s is.

    A stage of one block has nothing to skip: its letter picks its norms alone.
    """

    def run_stem(self, x: Tensor) -> Tensor:
        """Run what comes before the stages, (N, 3, H, W) to (N, C, H / 2, W / 2)."""
        return self.relu(self.norm1(self.conv1(x)))


def _require_depth(depth: int) -> None:
    if depth not in ResNet.arch_settings:
        raise UserError(f'depth should be one of {tuple(ResNet.arch_settings)}, but got {depth!r}')


@MODELS.register_module()
class ShallowResNet(ResNet):
    """ResNet of chosen blocks a stage: the individually trained counterpart of one sub-network.

    Args:
        depth: the ResNet whose blocks are counted.
        stage_blocks: blocks a stage; (2, 2, 3, 2) of depth 50 is the paper's R50-Base.
        **kwargs: those of :class:`mmdet.models.ResNet`.

    Raises:
        UserError: ``stage_blocks`` is not one positive number a stage.
    """

    def __init__(self, depth: int, *, stage_blocks: Sequence[int], **kwargs: Any) -> None:
        _require_depth(depth)
        num_stages = kwargs.get('num_stages', 4)
        if len(stage_blocks) != num_stages or min(stage_blocks) < 1:
            raise UserError(f'stage_blocks should be {num_stages} positive numbers, but got {tuple(stage_blocks)}')
        block, _ = ResNet.arch_settings[depth]
        self.arch_settings = {depth: (block, tuple(stage_blocks))}
        super().__init__(depth=depth, **kwargs)

    def train(self, mode: bool = True) -> ShallowResNet:
        """Set the mode as mmdet does, and return self as torch does (mmdet's returns None)."""
        super().train(mode)
        return self
