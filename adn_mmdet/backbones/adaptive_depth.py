"""What any adaptive-depth backbone is: its split rule, its active skip, and norms cloned at load.

A backbone of N stages holds 2^N sub-networks of one set of weights (arXiv 2312.16392, section 3). Every stage is a
mandatory sub-path followed by a skippable one. The mandatory sub-path may hold two sets of norms: the second
(``*_skip``) is used when its stage is skipped (skip-aware norms).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn

from ..errors import UserError
from ..skip_config import SkipConfig
from .in_force import force, in_force

Skip = str | SkipConfig | Iterable[bool]


def num_mandatory(num_blocks: int) -> int:
    """How many of a stage's blocks are mandatory: the first half, rounded up, but never all of several.

    [2, 2, 3, 2] of ResNet-50's [3, 4, 6, 3], [2, 2, 12, 2] of ResNet-101's [3, 4, 23, 3], [1, 1, 3, 1] of Swin-T's
    [2, 2, 6, 2], and 1 of a stage of one block, which has nothing to skip.
    """
    return max(1, min(num_blocks - 1, (num_blocks + 1) // 2))


class SubPaths(NamedTuple):
    """What one letter of a skip code governs."""

    mandatory: list[nn.Module]  # what always runs, with the norms that its letter asks for
    skippable: list[nn.Module]  # the blocks that run unless the stage is skipped

    @property
    def norms(self) -> list[tuple[nn.Module, str]]:
        """The norms that its letter picks a set of: the module that holds each, and its name there."""
        modules = [module for block in self.mandatory for module in block.modules()]
        return [(module, name) for module in modules for name in getattr(module, 'norm_names', ())]

    def add_twins(self) -> None:
        """Add the second set of norms: copies, so that what their norm was built and frozen with is theirs as well."""
        for module, name in self.norms:
            module.add_module(f'{name}_skip', copy.deepcopy(getattr(module, name)))


def norm_at(module: nn.Module, name: str, skip: bool) -> Any:
    """The norm ``name`` of a module; where its stage is skipped, that of the second set, if the module has one.

    Raises:
        UserError: the norm of the first set has become part of a convolution.
    """
    norm, twin = getattr(module, name), getattr(module, f'{name}_skip', None) if skip else None
    if twin is None:
        return norm
    if isinstance(norm, nn.Identity):
        raise UserError(
            "fuse_conv_bn has folded the super-net's norms into convolutions that a skipped stage needs without "
            'them: fuse one depth with tools/export_sub_net.py --fuse, or run this model at F only'
        )
    return twin


class MixIn(nn.Module):
    """What stands before a stock class, whose layers it uses."""

    if TYPE_CHECKING:  # layers are attributes that torch finds by name

        def __getattr__(self, name: str) -> Any: ...


class Stage(MixIn):
    """Mix-in of a stage, a sequence of blocks that are called as ``block(x, skip)``."""

    @property
    def blocks_in_order(self) -> list[Any]:
        """The blocks, first to last. A list, not a slice: slicing mmdet's ResLayer calls its constructor."""
        return list(self.children())

    @property
    def num_mandatory(self) -> int:
        """How many of the blocks always run."""
        return num_mandatory(len(self.blocks_in_order))

    @property
    def mandatory(self) -> list[Any]:
        """The blocks that always run."""
        return self.blocks_in_order[: self.num_mandatory]

    @property
    def skippable(self) -> list[Any]:
        """The blocks that run unless the stage is skipped."""
        return self.blocks_in_order[self.num_mandatory :]

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        """Run the stage, (N, C, H, W) to (N, C', H', W'), without its skippable sub-path if ``skip``."""
        for block in self.mandatory if skip else self.blocks_in_order:
            x = block(x, skip)
        return x


class SkippablePart(Protocol):
    """What a letter after the backbone's governs."""

    of: str  # attribute path inside the detector
    module: nn.Module  # which stands there
    num_cloned: int  # norms whose weights were cloned at the last load

    def is_in(self, name: str) -> bool:
        """Whether it lies in a detector's child of a name, such as ``neck``."""

    @property
    def sub_paths(self) -> SubPaths:
        """What always runs, and what is left out where the part is skipped."""

    def cut(self, config: dict[str, Any]) -> None:
        """Change the config of the module ``of`` into that of one that has no more than what always runs."""

    def stock_key(self, key: str) -> str | None:
        """The name of a weight in a detector that is cut."""

    def clone_norms(self, state_dict: dict[str, Tensor], own: dict[nn.Module, list[str]], prefix: str) -> None:
        """Give weights without a second set of norms a copy of the first."""


class AdaptiveDepthBackbone(MixIn):
    """Mix-in that owns the skip configuration of a backbone; goes before the backbone's class.

    A backbone of this kind, when constructed by its stock class, calls :meth:`make_adaptive`; its ``forward(x,
    skip=None)`` runs the stages with :meth:`resolve_skip`, each by :func:`~adn_mmdet.backbones.sharing.run_once`. It
    says which parts a letter governs (:attr:`sub_paths`), and each module in them that has norms to switch says their
    names (``norm_names``).
    """

    #: Letters of its own in a skip code; a class that is built with another number sets it.
    num_stages: int = 4
    #: What a detector can skip beyond its backbone (see ``adn_mmdet/parts``), in the order of the letters that follow.
    parts: Sequence[SkippablePart] = ()
    #: One module a letter, first to last, whose output is that of the stage: (N, C, H, W), or tokens (N, L, C).
    stages: Any
    #: Ends of the names of weights that the stock class resizes at load.
    resized_at_load: tuple[str, ...] = ()
    _num_cloned: int = 0

    def make_adaptive(self, skip: Skip | None, skip_aware_norm: bool) -> None:
        """Add the second set of norms, if wanted, and store a skip; None is the super-net.

        Raises:
            UserError: ``skip`` is not a code of this backbone's length.
        """
        for path in self.sub_paths if skip_aware_norm else ():
            path.add_twins()
        self.set_skip(SkipConfig.super_net(self.letter_groups) if skip is None else skip)

    @property
    def sub_paths(self) -> list[SubPaths]:
        """What each letter of its own governs, first to last."""
        raise NotImplementedError

    @property
    def letter_groups(self) -> tuple[int, ...]:
        """How many letters a skip code has: the stages', then one of each part beyond the backbone."""
        return self.num_stages, *(1 for _ in self.parts)

    @property
    def num_untrained_norms(self) -> int:
        """Norms whose weights were cloned at the last load, hence never trained with their stage or part skipped."""
        return self._num_cloned + sum(part.num_cloned for part in self.parts)

    @property
    def compilable(self) -> list[nn.Module]:
        """The modules that :func:`compile_stages` compiles, each for both ways of its letter."""
        return list(self.stages)

    def train(self, mode: bool = True) -> AdaptiveDepthBackbone:
        """Set the mode as the stock class does, and return self as torch does (stock classes return None)."""
        super().train(mode)
        return self

    @property
    def skip(self) -> SkipConfig:
        """The stored skip configuration, used where nothing else says which."""
        return self._skip

    def set_skip(self, skip: Skip) -> None:
        """Change the stored skip configuration.

        Raises:
            UserError: ``skip`` is not a code of this backbone's length.
        """
        self._skip = SkipConfig.parse(skip, self.letter_groups)

    @contextmanager
    def using_skip(self, skip: Skip) -> Iterator[SkipConfig]:
        """Run this backbone at ``skip`` inside the ``with`` block, in this thread or task only.

        What runs while a generator is suspended inside the block is not inside it. A copy that is made inside it keeps
        ``skip`` as its stored one.

        Raises:
            UserError: ``skip`` is not a code of this backbone's length.
        """
        parsed = SkipConfig.parse(skip, self.letter_groups)
        with force(self, parsed):
            yield parsed

    def resolve_skip(self, skip: Skip | None = None) -> SkipConfig:
        """The skip to run at: the explicit one, else the one of :meth:`using_skip`, else the stored one."""
        if skip is not None:
            return SkipConfig.parse(skip, self.letter_groups)
        return in_force(self) or self._skip

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: they run at the skip in force, which is none of theirs."""
        return {**super().__getstate__(), '_skip': self.resolve_skip()}

    def skipped_blocks(self, skip: Skip) -> list[nn.Module]:
        """The blocks that a forward at ``skip`` does not run."""
        return [block for path, flag in self._flagged(skip) if flag for block in path.skippable]

    def idle_norms(self, skip: Skip) -> list[nn.Module]:
        """The norms of blocks that a forward at ``skip`` runs, of the set that it does not use."""
        return [
            getattr(module, name) if flag else twin
            for path, flag in self._flagged(skip)
            for module, name in path.norms
            if (twin := getattr(module, f'{name}_skip', None)) is not None
        ]

    def _flagged(self, skip: Skip) -> list[tuple[SubPaths, bool]]:
        paths = [*self.sub_paths, *(part.sub_paths for part in self.parts)]
        return list(zip(paths, self.resolve_skip(skip), strict=True))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Both torch and mmengine pass the whole dict to the parent before they cut it up for its children, so that
        # what is added here is found by the norms. It is the caller's copy.
        if not prefix:
            self._strip_detector_prefix(state_dict)
            self._require_own(state_dict)
        self._clone_missing_norms(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _strip_detector_prefix(self, state_dict: dict[str, Tensor]) -> None:
        """Take a detector's ``backbone.*`` weights for this backbone; refuse a file that has none of its weights."""
        own_keys = self.state_dict().keys()
        if own_keys.isdisjoint(state_dict):
            for key in [key for key in state_dict if key.startswith('backbone.')]:
                state_dict[key.removeprefix('backbone.')] = state_dict.pop(key)
        if own_keys.isdisjoint(state_dict):
            given = ', '.join(list(state_dict)[:3]) or 'nothing'
            raise UserError(
                f'these weights fit no layer of {type(self).__name__}: they hold {given}, …, '
                f'but names such as {", ".join(list(own_keys)[:2])} are needed'
            )

    def _require_own(self, state_dict: dict[str, Tensor]) -> None:
        """Refuse weights of another network, of which mmengine would load what happens to have the same name."""
        own = {key: value.shape for key, value in self.state_dict().items() if '_skip.' not in key}
        missing = [key for key in own if key not in state_dict]
        name = type(self).__name__
        if len(missing) > len(own) / 2:
            raise UserError(
                f'these weights are of another network than {name}: {len(missing)} of its {len(own)} are not among '
                f'them, such as {missing[0]}; use those of the same architecture'
            )
        for key, shape in own.items():
            given = state_dict[key].shape if key in state_dict else shape
            if given != shape and not key.endswith(self.resized_at_load or ('\n',)):
                raise UserError(
                    f'these weights are of another {name}: {key} has shape {tuple(given)}, but {tuple(shape)} is '
                    'needed; use those of the same architecture'
                )

    def _clone_missing_norms(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Give weights without a second set of norms a copy of the first; refuse those of another stage split."""
        wanted = [prefix + key for key in self.state_dict() if '_skip.' in key]
        given = [key for key in state_dict if key.startswith(prefix) and '_skip.' in key]
        self._num_cloned = 0
        if wanted and given:
            self._require_split(_norms(given, prefix), _norms(wanted, prefix))
            return
        self._num_cloned = clone_norms(state_dict, wanted)

    def _require_split(self, given: list[str], wanted: list[str]) -> None:
        """Refuse weights whose second set of norms stands in other blocks."""
        if set(given) == set(wanted):
            return
        own, split, expected = type(self).__name__, _blocks_a_stage(given), _blocks_a_stage(wanted)
        others = ', '.join(sorted({*given} ^ {*wanted})[:2])
        raise UserError(
            f'these weights were trained with {split} mandatory blocks a stage, but this {own} has {expected}: '
            'use the architecture that they were trained with'
            if split != expected
            else f'these weights and this {own} have skip-aware norms in different blocks (such as {others}): '
            'use the architecture that they were trained with'
        )


def clone_norms(state_dict: dict[str, Tensor], wanted: Iterable[str]) -> int:
    """Give weights that lack some of the second set of norms copies of the first set, and warn that they are untrained.

    Args:
        state_dict: the weights, which are added to.
        wanted: the keys of the second set.

    Returns:
        How many norms were cloned.
    """
    missing = [key for key in wanted if key not in state_dict]
    cloned = {key: state_dict[twin] for key in missing if (twin := key.replace('_skip.', '.')) in state_dict}
    number = len({key.rpartition('.')[0] for key in cloned})
    if cloned:
        state_dict.update((key, value.clone()) for key, value in cloned.items())
        warnings.warn(
            f'{number} skip-aware norms are not in these weights and were cloned from their twins: the skipped '
            'sub-networks are untrained',
            stacklevel=3,
        )
    return number


def _norms(keys: Iterable[str], prefix: str) -> list[str]:
    """The norms that weights belong to, such as ``layer3.0.bn1_skip``."""
    return list(dict.fromkeys(key.removeprefix(prefix).rpartition('.')[0] for key in keys))


def _blocks_a_stage(norms: Iterable[str]) -> list[int]:
    """How many blocks of each stage hold a norm, where they are called ``layer3.0``."""
    blocks = {tuple(norm.split('.')[:2]) for norm in norms}
    stages = sorted({stage for stage, _ in blocks})
    return [sum(block_stage == stage for block_stage, _ in blocks) for stage in stages]


def find_backbone(model: nn.Module) -> AdaptiveDepthBackbone:
    """The adaptive-depth backbone inside a detector, whatever wraps it (DDP, EMA, TTA, torch.compile).

    Raises:
        UserError: there is none, or more than one.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    found = [module for module in modules if isinstance(module, AdaptiveDepthBackbone)]
    if len(found) != 1:
        inner = type(getattr(model, 'backbone', model)).__name__
        raise UserError(
            f'{type(model).__name__} should have one adaptive-depth backbone, but has {len(found)} (found {inner}): '
            'use one such as dict(type="AdaptiveDepthResNet", depth=50)'
        )
    return found[0]


def set_skip(model: nn.Module, skip: Skip) -> None:
    """Change the stored skip configuration of the backbone inside ``model``.

    Raises:
        UserError: ``skip`` is not a code of the backbone, or there is no adaptive-depth backbone.
    """
    backbone = getattr(model, 'backbone', None)  # a detector's own: looking through all modules takes 50 times as long
    (backbone if isinstance(backbone, AdaptiveDepthBackbone) else find_backbone(model)).set_skip(skip)
