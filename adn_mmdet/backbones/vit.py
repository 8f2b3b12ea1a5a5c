"""Vision Transformer of any depth: AdaptiveDepthViT, on mmpretrain's class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .adaptive_depth import AdaptiveDepthBackbone, Skip, SubPaths, num_mandatory
from .sharing import as_output, run_once
from .transformer import AdaptiveDepthTransformerBlock

try:
    from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer, VisionTransformer
    from mmpretrain.models.utils import resize_pos_embed
except ImportError as missing:
    reason = str(missing)

    class VisionTransformer(nn.Module):  # type: ignore[no-redef]
        """Says in one line what is missing."""

        def __init__(self, *_: Any, **__: Any) -> None:
            raise UserError(f'AdaptiveDepthViT needs mmpretrain ({reason}): pip install "adn_mmdet[cls]"')

    TransformerEncoderLayer = nn.Module


class AdaptiveDepthViTBlock(AdaptiveDepthTransformerBlock, TransformerEncoderLayer):
    """mmpretrain's TransformerEncoderLayer whose ``forward(x, hw, skip)`` picks its norms."""

    norm_names = ('ln1', 'ln2')
    window_size = 0

    def attend(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Run the attention, (N, L, C) to (N, L, C), within windows if there are any."""
        if not self.window_size:
            return self.attn(x)
        (height, width), size = hw, self.window_size
        x = F.pad(x.unflatten(1, hw), (0, 0, 0, -width % size, 0, -height % size))
        num, rows, columns, channels = x.shape
        grid = num, rows // size, size, columns // size, size, channels
        windows = x.view(grid).transpose(2, 3)  # (N, rows of windows, windows a row, size, size, C)
        attended = self.attn(windows.reshape(-1, size * size, channels)).view(windows.shape)
        x = attended.transpose(2, 3).reshape(num, rows, columns, channels)
        return x[:, :height, :width].flatten(1, 2)


@MODELS.register_module()
class AdaptiveDepthViT(AdaptiveDepthBackbone, VisionTransformer):
    """Vision Transformer whose depth is a run-time setting (arXiv 2312.16392, section 3).

    Four letters govern a quarter of the blocks each; of ViT-B's 12, blocks 2, 5, 8 and 11 are skippable. With nothing
    skipped it is mmpretrain's VisionTransformer to the bit and has its state_dict keys; the second set of norms adds
    ``layers.B.ln{1,2}_skip.*`` of mandatory blocks. The final norm is shared. An output in ``out_indices`` of a block
    that is skipped is what would have been its input.

    Args:
        arch: as mmpretrain names it, such as ``'b'`` with ``patch_size=16`` or 32.
        skip: the stored skip configuration, such as ``'TTFF'``; None is the super-net.
        skip_aware_norm: whether there is a second set of norms.
        window_size: side in patches of the windows that attention is limited to, for large images; 0 is none.
        global_blocks: the blocks without windows; None takes the last mandatory one of each quarter, so that
            every depth has all of them.
        with_cp: recompute activations in the backward pass, to save memory.
        **kwargs: those of :class:`mmpretrain.models.VisionTransformer`.

    Raises:
        UserError: mmpretrain is absent, the blocks have no quarters, windows are wanted beside a class token, a block
            is global that can be skipped, or a skip is not a code of four letters.
    """

    resized_at_load = ('pos_embed',)

    def __init__(
        self,
        arch: str | dict[str, int] = 'b',
        *,
        skip: Skip | None = None,
        skip_aware_norm: bool = True,
        window_size: int = 0,
        global_blocks: Sequence[int] | None = None,
        with_cp: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(arch, **kwargs)
        if self.num_layers % self.num_stages:
            raise UserError(f'the number of blocks should be a multiple of 4, but {arch!r} has {self.num_layers}')
        if window_size and self.cls_token is not None:
            raise UserError('a class token is in no window: set with_cls_token=False and out_type="featmap"')
        for layer in self.layers:
            layer.__class__ = AdaptiveDepthViTBlock
            layer.take_out('out_drop')
            layer.with_cp, layer.window_size = with_cp, window_size
        last = [path.mandatory[-1] for path in self.sub_paths]
        chosen = last if global_blocks is None else [self.layers[index] for index in global_blocks]
        if skippable := [
            index for index, layer in enumerate(self.layers) if layer in chosen and self._skippable(index)
        ]:
            raise UserError(f'global_blocks {skippable} can be skipped: choose blocks that always run')
        for layer in chosen:
            layer.window_size = 0
        self.stages = nn.ModuleList(nn.Identity() for _ in range(self.num_stages))  # where a quarter ends
        self.make_adaptive(skip, skip_aware_norm)

    @property
    def compilable(self) -> list[Any]:
        """The blocks."""
        return list(self.layers)

    @property
    def sub_paths(self) -> list[SubPaths]:
        """What each letter of a code governs, first to last."""
        paths = [SubPaths([], []) for _ in range(self.num_stages)]
        for index, layer in enumerate(self.layers):
            path = paths[index // self._quarter]
            (path.skippable if self._skippable(index) else path.mandatory).append(layer)
        return paths

    @property
    def _quarter(self) -> int:
        return self.num_layers // self.num_stages

    def _skippable(self, index: int) -> bool:
        return index % self._quarter >= num_mandatory(self._quarter)

    def forward(self, x: Tensor, skip: Skip | None = None) -> tuple[Any, ...]:
        """Run one sub-network.

        Args:
            x: images, (N, 3, H, W).
            skip: the sub-network; None takes that of ``using_skip``, else the stored one.

        Returns:
            The outputs of the blocks in ``out_indices``, of the kind that ``out_type`` says: (N, C) of the class
            token, (N, C, H / patch, W / patch) of a feature map.
        """
        flags = self.resolve_skip(skip).flags
        x = run_once(self, self.run_patches, x)
        hw = x.shape[-2:]
        x = run_once(self, self.run_embedding, x)
        outputs = []
        for index, layer in enumerate(self.layers):
            flag = flags[index // self._quarter]
            if not (flag and self._skippable(index)):
                x = run_once(self, layer, x, hw, flag)
            if (index + 1) % self._quarter == 0:
                x = self.stages[index // self._quarter](x)
            if index == self.num_layers - 1 and self.final_norm:
                x = run_once(self, self.ln1, x)
            if index in self.out_indices:
                outputs.append(as_output(self, run_once(self, self._format_output, x, hw), index))
        return tuple(outputs)

    def run_patches(self, x: Tensor) -> Tensor:
        """Embed patches, (N, 3, H, W) to (N, C, H / patch, W / patch)."""
        x, hw = self.patch_embed(x)
        return x.transpose(1, 2).unflatten(2, hw)

    def run_embedding(self, x: Tensor) -> Tensor:
        """Make tokens with their positions of patches, (N, C, H, W) to (N, 1 + H · W, C), 1 for a class token."""
        hw = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = x + resize_pos_embed(
            self.pos_embed,
            self.patch_resolution,
            hw,
            mode=self.interpolate_mode,
            num_extra_tokens=self.num_extra_tokens,
        )
        return self.pre_norm(self.drop_after_pos(x))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse a position embedding that mmpretrain cannot resize, for it takes the grid to be a square."""
        key, own = f'{prefix}pos_embed', self.pos_embed
        given = state_dict.get(key, own)
        num = given.shape[1] - self.num_extra_tokens if given.dim() == 3 else 0
        squares = {num, num - 1} if self.cls_token is None else {num}  # of a file with a class token that is not used
        if given.shape != own.shape and (
            num < 1 or given.shape[-1] != own.shape[-1] or all(math.isqrt(n) ** 2 != n for n in squares)
        ):
            raise UserError(
                f'{key} has shape {tuple(given.shape)}, which cannot be resized to {tuple(own.shape)}: it has to be a '
                'square of patches, of the same width; use weights of the same architecture, or their img_size'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
