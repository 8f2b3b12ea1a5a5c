"""What torch.hub builds from the folder of an exported sub-network: what mmdet's classes cannot be told in a config.

A copy of this file lies beside every such config, which names it as the ``type`` of its backbone or head. It needs
mmdet alone.
"""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import fuse_conv_bn
from mmdet import models
from torch import nn


def backbone(kind: str, stage_blocks: Sequence[int], fused: bool = False, **kwargs: Any) -> nn.Module:
    """Build a backbone of chosen blocks a stage.

    Args:
        kind: the class of mmdet, one of ResNet's kin or ``'MobileNetV2'``.
        stage_blocks: how many blocks of each stage there are, the first ones; of MobileNetV2 those of layer2 to layer6.
        fused: whether each batch norm is part of the convolution before it, as in weights saved after
            ``mmcv.cnn.fuse_conv_bn``.
        **kwargs: those of the class.
    """
    net = getattr(models, kind)(**kwargs)  # not a subclass: one that is defined here could not be pickled
    names = net.layers[1:6] if kind == 'MobileNetV2' else net.res_layers
    for name, number in zip(names, stage_blocks, strict=True):
        blocks = getattr(net, name)
        while len(blocks) > number:
            del blocks[len(blocks) - 1]
    return fuse_conv_bn(net) if fused else net


def ssd_head(**kwargs: Any) -> models.SSDHead:
    """Build mmdet's SSDHead with the ``loss_cls`` that its ``predict`` asks for, without which mmdet 3.3's fails."""
    head = models.SSDHead(**kwargs)
    head.loss_cls = None
    return head
