"""Necks that run once for sub-networks which differ in the parts that come after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.necks import FPN, ChannelMapper, CSPNeXtPAFPN
from torch import Tensor, nn

from ..backbones.adaptive_depth import MixIn
from ..backbones.sharing import run_once
from .part import Part


class _SharedNeck(MixIn):
    """Mix-in of a neck, goes before its class; see :func:`~adn_mmdet.backbones.sharing.sharing`."""

    parts: Sequence[Part]

    def forward(self, inputs: tuple[Tensor, ...]) -> Any:
        """As the neck's, (N, C, H, W) a stage to (N, C', H', W') a level."""
        flags = [part.is_skipped() for part in self.parts if part.is_in('neck')]
        return run_once(self.parts[0].backbone, self._run, tuple(inputs), flags)

    def _run(self, inputs: tuple[Tensor, ...], flags: list[bool]) -> Any:
        return super().forward(inputs)


class SharedFPN(_SharedNeck, FPN):
    """That of GFL, ATSS, FCOS, RetinaNet and the R-CNNs."""


class SharedChannelMapper(_SharedNeck, ChannelMapper):
    """That of DETR's kin."""


class SharedCSPNeXtPAFPN(_SharedNeck, CSPNeXtPAFPN):
    """That of RTMDet."""


NECKS = {FPN: SharedFPN, ChannelMapper: SharedChannelMapper, CSPNeXtPAFPN: SharedCSPNeXtPAFPN}


def share(neck: nn.Module | None, parts: Sequence[Part]) -> None:
    """Let a neck run once for all letters of parts that are not in it; another neck runs once a sub-network."""
    if parts and type(neck) in NECKS:
        neck.__class__ = NECKS[type(neck)]  # type: ignore[assignment,index]
        neck.parts = parts  # type: ignore[union-attr,assignment]
