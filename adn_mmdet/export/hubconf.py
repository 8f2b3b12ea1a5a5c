"""What torch.hub builds from the folder of an exported sub-network: mmdet's ResNet of chosen blocks a stage.

A copy of this file lies beside every such config, which names it as its backbone's ``type``. It needs mmdet alone.
"""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import fuse_conv_bn
from mmdet.models import ResNet


def resnet(depth: int, stage_blocks: Sequence[int], fused: bool = False, **kwargs: Any) -> ResNet:
    """Build a ResNet.

    Args:
        depth: the ResNet whose kind of blocks is taken, such as 50.
        stage_blocks: blocks a stage.
        fused: whether each batch norm is part of the convolution before it, as in weights saved after
            ``mmcv.cnn.fuse_conv_bn``.
        **kwargs: those of :class:`mmdet.models.ResNet`.
    """
    net = ResNet.__new__(ResNet)  # not a subclass: one that is defined here could not be pickled
    net.arch_settings = {depth: (ResNet.arch_settings[depth][0], tuple(stage_blocks))}
    ResNet.__init__(net, depth, **kwargs)
    return fuse_conv_bn(net) if fused else net
