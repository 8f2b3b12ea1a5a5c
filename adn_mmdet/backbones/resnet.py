"""ResNet backbones: of any depth (AdaptiveDepthResNet), and of chosen blocks a stage (ShallowResNet)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import Bottleneck, ResNet
from mmdet.models.layers import ResLayer
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils import checkpoint

from ..errors import UserError
from .adaptive_depth import AdaptiveDepthBackbone, Skip, num_mandatory
from .sharing import as_output, run_once

NORMS = ('norm1', 'norm2', 'norm3')


class AdaptiveDepthBottleneck(Bottleneck):
    """mmdet's Bottleneck whose ``forward(x, skip)`` picks its set of norms.

    The skip is an argument, not a state, so that activation checkpointing recomputes with the same norms.
    """

    has_skip_norms = False

    def add_skip_norms(self) -> None:
        """Add the second set of norms, named as in the authors' checkpoints (``bn1_skip`` …)."""
        for norm in NORMS:
            name = getattr(self, f'{norm}_name')
            _, twin = build_norm_layer(self.norm_cfg, self.planes * (self.expansion if norm == 'norm3' else 1))
            self.add_module(f'{name}_skip', twin)
        if self.init_cfg:  # mmdet's zero_init_residual, which must reach the last norm of both sets
            self.init_cfg['override'] = [self.init_cfg['override'], dict(name=f'{self.norm3_name}_skip')]
        self.has_skip_norms = True

    def norm_set(self, skip: bool) -> list[nn.Module]:
        """The three norms that run when this block's stage is skipped (``skip``) or not.

        Raises:
            UserError: those of the other set have become part of the convolutions.
        """
        names = [getattr(self, f'{norm}_name') for norm in NORMS]
        if not (skip and self.has_skip_norms):
            return [getattr(self, name) for name in names]
        if any(isinstance(getattr(self, name), nn.Identity) for name in names):
            raise UserError(
                "fuse_conv_bn has folded the super-net's norms into convolutions that a skipped stage needs without "
                'them: fuse one depth with tools/export_sub_net.py --fuse, or run this model at F only'
            )
        return [getattr(self, f'{name}_skip') for name in names]

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the block.

        Args:
            x: (N, C, H, W).
            skip: whether the stage that this block belongs to is skipped.

        Returns:
            (N, 4 * planes, H / stride, W / stride).
        """
        norm1, norm2, norm3 = self.norm_set(skip)

        def residual(x: Tensor) -> Tensor:
            out = self.relu(norm1(self.conv1(x)))
            if self.with_plugins:
                out = self.forward_plugin(out, self.after_conv1_plugin_names)
            out = self.relu(norm2(self.conv2(out)))
            if self.with_plugins:
                out = self.forward_plugin(out, self.after_conv2_plugin_names)
            out = norm3(self.conv3(out))
            if self.with_plugins:
                out = self.forward_plugin(out, self.after_conv3_plugin_names)
            out += x if self.downsample is None else self.downsample(x)
            return out

        if self.with_cp and x.requires_grad:
            return self.relu(checkpoint.checkpoint(residual, x, use_reentrant=False))
        return self.relu(residual(x))


class AdaptiveDepthStage(ResLayer):
    """A residual stage: a mandatory sub-path, then a skippable one that only refines its output."""

    def __init__(self, *args: Any, skip_aware_norm: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_mandatory = num_mandatory(len(self))
        if skip_aware_norm:
            for block in self.mandatory:
                block.add_skip_norms()

    # Lists, not slices: slicing a ResLayer calls its constructor.
    @property
    def mandatory(self) -> list[AdaptiveDepthBottleneck]:
        """The blocks that always run."""
        return list(self)[: self.num_mandatory]

    @property
    def skippable(self) -> list[AdaptiveDepthBottleneck]:
        """The blocks that run unless the stage is skipped."""
        return list(self)[self.num_mandatory :]

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the stage, (N, C, H, W) to (N, C', H', W'), without its skippable sub-path if ``skip``."""
        for block in self.mandatory if skip else self:
            x = block(x, skip)
        return x


class _ResNet(ResNet):
    def train(self, mode: bool = True) -> _ResNet:
        """Set the mode as mmdet does, and return self as torch does (mmdet's returns None)."""
        super().train(mode)
        return self


@MODELS.register_module()
class AdaptiveDepthResNet(AdaptiveDepthBackbone, _ResNet):
    """ResNet whose depth is a run-time setting (arXiv 2312.16392, section 3).

    With nothing skipped it is mmdet's ResNet to the bit and has its state_dict keys; the second set of norms adds
    ``layerS.B.bn{1,2,3}_skip.*``. What is not in a mandatory block's main branch has one set of norms for all
    sub-networks: the stem, the shortcuts (``downsample``), plugins and the skippable blocks. In training without
    ``norm_eval`` each pass updates the running statistics of the norms it runs, so that two passes an iteration
    update these shared ones twice.

    Args:
        depth: 50 or 101.
        skip: the stored skip configuration, such as ``'TTFF'``.
        skip_aware_norm: whether mandatory blocks hold a second set of norms, used when their stage is skipped.
        **kwargs: those of :class:`mmdet.models.ResNet`; ``avg_down=True`` is the authors' vd variant.

    Raises:
        UserError: another depth, or a skip that is not a code of ``num_stages`` letters.
    """

    def __init__(self, depth: int, *, skip: Skip = 'FFFF', skip_aware_norm: bool = True, **kwargs: Any) -> None:
        if depth not in (50, 101):
            raise UserError(f'depth should be 50 or 101, but got {depth!r}: only their stages have a known split')
        self.skip_aware_norm = skip_aware_norm
        super().__init__(depth=depth, **kwargs)
        self.set_skip(skip)

    def make_res_layer(self, **kwargs: Any) -> AdaptiveDepthStage:
        """Build one stage; called by mmdet's constructor."""
        # Only the block is replaced here, not in `arch_settings`: mmdet applies zero_init_residual where the class
        # in arch_settings is Bottleneck itself.
        kwargs['block'] = AdaptiveDepthBottleneck
        return AdaptiveDepthStage(skip_aware_norm=self.skip_aware_norm, **kwargs)

    @property
    def stages(self) -> list[AdaptiveDepthStage]:
        """The residual stages, first to last."""
        return [getattr(self, name) for name in self.res_layers]

    def skipped_blocks(self, skip: Skip) -> list[nn.Module]:
        """The blocks that a forward at ``skip`` does not run."""
        flags = self.resolve_skip(skip)
        return [block for stage, flag in zip(self.stages, flags) if flag for block in stage.skippable]

    def idle_norms(self, skip: Skip) -> list[nn.Module]:
        """The norms of blocks that a forward at ``skip`` runs, of the set that it does not use."""
        flags = self.resolve_skip(skip)
        mandatory = [(block, flag) for stage, flag in zip(self.stages, flags) for block in stage.mandatory]
        return [norm for block, flag in mandatory if block.has_skip_norms for norm in block.norm_set(not flag)]

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
class ShallowResNet(_ResNet):
    """ResNet of chosen blocks a stage: the individually trained counterpart of one sub-network.

    Args:
        depth: the ResNet whose blocks are counted.
        stage_blocks: blocks a stage; (2, 2, 3, 2) of depth 50 is the paper's R50-Base.
        **kwargs: those of :class:`mmdet.models.ResNet`.

    Raises:
        UserError: ``stage_blocks`` is not one positive number a stage.
    """

    def __init__(self, depth: int, *, stage_blocks: Sequence[int], **kwargs: Any) -> None:
        if depth not in ResNet.arch_settings:
            raise UserError(f'depth should be one of {tuple(ResNet.arch_settings)}, but got {depth!r}')
        num_stages = kwargs.get('num_stages', 4)
        if len(stage_blocks) != num_stages or min(stage_blocks) < 1:
            raise UserError(f'stage_blocks should be {num_stages} positive numbers, but got {tuple(stage_blocks)}')
        block, _ = ResNet.arch_settings[depth]
        self.arch_settings = {depth: (block, tuple(stage_blocks))}
        super().__init__(depth=depth, **kwargs)
