"""What a skippable part is: one letter of a skip code beyond the backbone's, and what that letter governs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import ModuleList
from torch import Tensor, nn

from ..backbones.adaptive_depth import AdaptiveDepthBackbone, SubPaths, clone_norms
from ..errors import UserError
from .items import SkipAwareConv, SkippableList, SkippableModuleList, SkippableSequential

TWINS: dict[type, type] = {
    nn.ModuleList: SkippableList,
    ModuleList: SkippableModuleList,
    nn.Sequential: SkippableSequential,
    ConvModule: SkipAwareConv,
}


class Part:
    """Sequences inside a detector whose first items always run and whose others can be skipped.

    It is no module: the detector that it is attached to keeps its class and its names; what a kind of part adds are
    :meth:`find` and :meth:`cut`. The backbone knows which code is in force, and asks the part what its letter governs.

    Args:
        of: attribute path of the module inside the detector, such as ``bbox_head``.
        keep: how many items of each sequence always run, 1 or more and not all.
        skip_aware_norm: whether these items hold a second set of norms (``*_skip``), used when the part is skipped.
    """

    backbone: AdaptiveDepthBackbone
    #: Which letter of a code is the part's.
    index: int
    #: The module at the path ``of``.
    module: Any
    #: The fewest items of a sequence that have to be kept.
    least: int = 1
    #: Norms whose weights were cloned at the last load, hence never trained with the part skipped.
    num_cloned: int = 0

    def __init__(self, of: str, keep: int = 2, skip_aware_norm: bool = True) -> None:
        self.of, self.keep, self.skip_aware_norm = of, keep, skip_aware_norm

    def find(self) -> Sequence[nn.Module]:
        """The ``nn.ModuleList`` and ``nn.Sequential`` of items in :attr:`module`.

        Raises:
            UserError: there is none, or items that cannot be left out.
        """
        raise NotImplementedError

    def cut(self, config: dict[str, Any]) -> None:
        """Change the config of the module into that of a stock one that has no more than the mandatory items.

        The names of the weights of such a module are those of the mandatory items.
        """
        raise NotImplementedError

    def stock_key(self, key: str) -> str | None:
        """The name that a weight of the detector has in a stock one that is cut; None where it has no place there."""
        return key

    def attach(self, detector: nn.Module, backbone: AdaptiveDepthBackbone) -> None:
        """Make items of a detector skippable, by the next letter of its backbone's codes.

        Raises:
            UserError: the detector has no such module, the module no such items, or there are too few of them.
        """
        self.backbone, self.index = backbone, sum(backbone.letter_groups)
        self.module = self._module_in(detector)
        self.sequences = list(self.find())
        self._require_keep()
        self._require_no_checkpointing()
        for sequence in self.sequences:
            self.own(sequence)
        if self.skip_aware_norm:
            for module in [module for item in self.sub_paths.mandatory for module in item.modules()]:
                self.own(module)
            self.sub_paths.add_twins()
        backbone.parts = [*backbone.parts, self]

    def own(self, module: nn.Module) -> None:
        """Let a stock module ask this part whether it is skipped, if there is a twin of its class in TWINS."""
        if type(module) in TWINS:
            module.__class__ = TWINS[type(module)]
            module.part = self  # type: ignore[assignment]  # no module, so that it has no name in the detector

    def is_skipped(self) -> bool:
        """Whether the code in force skips this part."""
        return self.backbone.resolve_skip().flags[self.index]

    def is_in(self, name: str) -> bool:
        """Whether this part lies in a detector's child of a name, such as ``neck``."""
        return self.of.split('.')[0] == name

    @property
    def sub_paths(self) -> SubPaths:
        """What always runs, and what is left out where the part is skipped."""
        items = [list(sequence.children()) for sequence in self.sequences]
        first, others = ([item for each in items for item in each[cut]] for cut in _halves(self.keep))
        return SubPaths(first, others)

    def clone_norms(self, state_dict: dict[str, Tensor], own: dict[nn.Module, list[str]], prefix: str) -> None:
        """Give weights without the second set of norms a copy of the first; refuse those of another split.

        Args:
            state_dict: the detector's, which is added to.
            own: the names of the detector's modules; what stands in two places has two.
            prefix: what the detector's keys begin with.

        Raises:
            UserError: the weights have a second set in other items.
        """
        inside = f'{prefix}{self.of}.'
        twins = [getattr(module, f'{name}_skip', None) for module, name in self.sub_paths.norms]
        names = [(name, twin) for twin in dict.fromkeys(twins) if twin is not None for name in own[twin]]
        wanted = [f'{prefix}{name}.{key}' for name, twin in names for key in twin.state_dict()]
        given = [key for key in state_dict if key.startswith(inside) and '_skip.' in key]
        self.num_cloned = 0
        if wanted and given and set(wanted) ^ set(given):
            raise UserError(
                f'these weights and {self.described} have skip-aware norms in different items (such as '
                f'{min(set(wanted) ^ set(given))}): use the keep that they were trained with'
            )
        if not given:
            self.num_cloned = clone_norms(state_dict, wanted)

    @property
    def described(self) -> str:
        """The part in a message."""
        return f'{type(self).__name__} of {self.of}'

    def _module_in(self, detector: nn.Module) -> nn.Module:
        try:
            return detector.get_submodule(self.of)
        except AttributeError as error:
            names = ', '.join(name for name, _ in detector.named_children())
            raise UserError(
                f'{self.described}: {type(detector).__name__} has no such module; its own are {names}'
            ) from error

    def _require_keep(self) -> None:
        fewest = min(len(list(sequence.children())) for sequence in self.sequences)
        if not isinstance(self.keep, int) or isinstance(self.keep, bool) or not self.least <= self.keep < fewest:
            raise UserError(
                f'{self.described}: keep should be from {self.least} to {fewest - 1}, as there are {fewest} items, '
                f'but got {self.keep!r}'
            )

    def _require_no_checkpointing(self) -> None:
        """A checkpoint runs its layers again on the way back, outside the block that says what is skipped."""
        for module in [self.module, *self.sub_paths.mandatory, *self.sub_paths.skippable]:
            for name in ('with_cp', 'num_cp'):
                if any(getattr(inner, name, 0) not in (0, -1) for inner in module.modules()):
                    raise UserError(
                        f'{self.described} cannot be skipped under activation checkpointing: leave its {name} out'
                    )


def _halves(keep: int) -> tuple[slice, slice]:
    return slice(keep), slice(keep, None)
