"""What a skippable part is made of: sequences that leave items out, and convolutions that pick their norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmcv.cnn import ConvModule
from mmengine.model import ModuleList
from torch import nn

from ..backbones.adaptive_depth import MixIn, norm_at

if TYPE_CHECKING:
    from .part import Part


class Skippable(MixIn):
    """Mix-in of a sequence of modules: one who iterates over it gets the mandatory ones alone while they are all.

    Names and weights stay those of the stock sequence, and so does its length, which heads compare with indices.
    """

    part: Part

    def __iter__(self) -> Iterator[nn.Module]:
        items: list[Any] = list(self._modules.values())
        return iter(items[: self.part.keep] if self.part.is_skipped() else items)

    def __getitem__(self, index: Any) -> Any:
        """The item of an index; a negative one counts from the last that is iterated over."""
        return list(self)[index] if isinstance(index, int) and index < 0 else super().__getitem__(index)  # type: ignore[misc]


class SkippableList(Skippable, nn.ModuleList):
    """A list that its owner iterates over, such as the tower of a dense head."""


class SkippableModuleList(Skippable, ModuleList):
    """mmengine's list, such as that of a mask head, or of the heads of a cascade."""


class SkippableSequential(Skippable, nn.Sequential):
    """A sequence that is called, such as the blocks of a CSP layer."""


class SkipAwareConv(ConvModule):
    """mmcv's ConvModule with a second norm, which it uses while its part is skipped."""

    part: Part

    @property
    def norm_names(self) -> tuple[str, ...]:
        """The norms that have a twin."""
        return (self.norm_name,) if self.norm_name else ()

    @property
    def norm(self) -> Any:
        """The norm in force; None where there is none."""
        return norm_at(self, self.norm_name, self.part.is_skipped()) if self.norm_name else None
