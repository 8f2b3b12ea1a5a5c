"""A neck that makes a pyramid of the one feature map of a plain ViT (Li et al., arXiv 2203.16527, section 3)."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Four levels at strides 4, 8, 16 and 32 from the last map at stride 16; further ones are subsampled.

    Args:
        in_channels: channels of the map, a multiple of 4.
        out_channels: channels of each level.
        num_outs: number of levels, 4 or more.
        norm_cfg: norm after each convolution; batches of detectors are too small for batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 5,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        norm_cfg = norm_cfg or dict(type='GN', num_groups=32)
        half, quarter = in_channels // 2, in_channels // 4
        twice = nn.ConvTranspose2d(in_channels, half, 2, stride=2)
        four_times = nn.Sequential(
            nn.ConvTranspose2d(in_channels, half, 2, stride=2),
            build_norm_layer(norm_cfg, half)[1],
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        scaled = (four_times, quarter), (twice, half), (nn.Identity(), in_channels), (nn.MaxPool2d(2), in_channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None),
            )
            for scale, channels in scaled
        )
        self.num_outs = num_outs

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Make the levels, each (N, out_channels, H / stride, W / stride), of the last of ``inputs``, (N, C, H, W)."""
        outputs = [level(inputs[-1]) for level in self.levels]
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
        return tuple(outputs)
