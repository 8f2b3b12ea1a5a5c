"""torch.compile for backbones, stage by stage, so that two graphs a stage are enough for all 2^N depths."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.backbones.resnet import ResNet
from torch import nn

from ..errors import UserError
from .adaptive_depth import AdaptiveDepthBackbone

VARIANTS = 8  # input kinds a compiled stage may meet (sizes, batches, precisions, …); torch's own limit for a function


def compile_stages(model: nn.Module, **options: Any) -> None:
    """Compile the stages of an adaptive-depth backbone, or of a stock ResNet, in place.

    A stage has one graph for each way of its skip, compiled when it is first met; a code that combines known graphs
    compiles nothing, and a switch of depths costs what it did. The first other image size compiles each graph once
    more, with free sizes. The stem is not compiled, nor are copies of the model; weights keep their names. Of a stock
    net torch compiles the blocks, whose stage is a plain Sequential.

    Args:
        model: the backbone, or whatever it is in.
        **options: those of :func:`torch.compile`.

    Raises:
        UserError: there is neither in ``model``.
    """
    stages = [stage for net in model.modules() for stage in _stages(net)]
    if not stages:
        raise UserError(
            f'{type(getattr(model, "backbone", model)).__name__} has no residual stages to compile: '
            'use an adaptive-depth backbone or a ResNet, or leave compiling out'
        )
    for stage in stages:
        stage.compile(**options)
    # torch counts graphs by the code that they were made from, which all stages share, and runs what is over the limit
    # uncompiled: 4 stages × 2 are 8, its default, so that a second image size would be too many.
    torch._dynamo.config.recompile_limit += 2 * len(stages) * VARIANTS


def _stages(net: nn.Module) -> list[nn.Module]:
    if isinstance(net, AdaptiveDepthBackbone):
        return net.compilable
    return [getattr(net, name) for name in net.res_layers] if isinstance(net, ResNet) else []
