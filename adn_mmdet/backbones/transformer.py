"""The block that Swin and ViT have in common: attention and a feed-forward network, each after a norm of its own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils import checkpoint

from .adaptive_depth import MixIn, norm_at


class AdaptiveDepthTransformerBlock(MixIn):
    """Mix-in of a stock block whose ``forward(x, hw, skip)`` picks its set of norms; goes before the block's class.

    The skip is an argument, not a state, so that activation checkpointing recomputes with the same norms. Where it is
    true stochastic depth is off, as in the authors' networks.
    """

    norm_names: tuple[str, ...]
    with_cp = False

    def take_out(self, drop_path: str) -> None:
        """Move stochastic depth out of the attention, where it is called ``drop_path``, and of the feed-forward part.

        Stock parts apply it last, so that here it applies to what they return. It has no weights.
        """
        self.drop_path1, self.drop_path2 = getattr(self.attn, drop_path), self.ffn.dropout_layer
        setattr(self.attn, drop_path, nn.Identity())
        self.ffn.dropout_layer, self.ffn.add_identity = nn.Identity(), False
        for drop in (self.drop_path1, self.drop_path2):
            drop.drop_prob = float(drop.drop_prob)  # of numpy in ViT, on which torch.compile cannot decide

    def attend(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Run the attention, (N, L, C) to (N, L, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor, hw: tuple[int, int], skip: bool = False) -> Tensor:
        """Run the block.

        Args:
            x: tokens, (N, L, C).
            hw: height and width of the map that the tokens are.
            skip: whether the stage that this block belongs to is skipped.

        Returns:
            (N, L, C).
        """
        norm1, norm2 = [norm_at(self, name, skip) for name in self.norm_names]

        def run(x: Tensor) -> Tensor:
            out = self.attend(norm1(x), hw)
            x = x + (out if skip else self.drop_path1(out))
            out = self.ffn(norm2(x))
            return x + (out if skip else self.drop_path2(out))

        if self.with_cp and x.requires_grad:
            return checkpoint.checkpoint(run, x, use_reentrant=False)
        return run(x)
