"""What any adaptive-depth backbone is: its split rule, its active skip, and norms cloned at load.

A backbone of N stages holds 2^N sub-networks of one set of weights (arXiv 2312.16392, section 3). Every stage is a
mandatory sub-path followed by a skippable one. The mandatory sub-path may hold two sets of norms: the second
(``*_skip``) is used when its stage is skipped (skip-aware norms).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import UserError
from ..skip_config import SkipConfig
from .in_force import force, in_force

Skip = str | SkipConfig | Iterable[bool]


def num_mandatory(num_blocks: int) -> int:
    """How many of a stage's residual blocks are mandatory: the first half, rounded up, but never all.

    [2, 2, 3, 2] of ResNet-50's [3, 4, 6, 3], and [2, 2, 12, 2] of ResNet-101's [3, 4, 23, 3].
    """
    return min(num_blocks - 1, (num_blocks + 1) // 2)


class AdaptiveDepthBackbone(nn.Module):
    """Mix-in that owns the skip configuration of a backbone; goes before the backbone's class.

    A backbone of this kind sets :attr:`num_stages` and, when constructed, calls :meth:`set_skip`; its ``forward(x,
    skip=None)`` runs the stages with :meth:`resolve_skip`, each by :func:`~adn_mmdet.backbones.sharing.run_once`. It
    names the second set of norms ``<norm>_skip``.
    """

    num_stages: int
    #: Norms whose weights were cloned at the last load, hence never trained with their stage skipped.
    num_untrained_norms: int = 0

    if TYPE_CHECKING:  # layers are attributes that torch finds by name

        def __getattr__(self, name: str) -> Any: ...

    @property
    def skip(self) -> SkipConfig:
        """The stored skip configuration, used where nothing else says which."""
        return self._skip

    def set_skip(self, skip: Skip) -> None:
        """Change the stored skip configuration.

        Raises:
            UserError: ``skip`` is not a code of this backbone's length.
        """
        self._skip = SkipConfig.parse(skip, self.num_stages)

    @contextmanager
    def using_skip(self, skip: Skip) -> Iterator[SkipConfig]:
        """Run this backbone at ``skip`` inside the ``with`` block, in this thread or task only.

        What runs while a generator is suspended inside the block is not inside it. A copy that is made inside it keeps
        ``skip`` as its stored one.

        Raises:
            UserError: ``skip`` is not a code of this backbone's length.
        """
        parsed = SkipConfig.parse(skip, self.num_stages)
        with force(self, parsed):
            yield parsed

    def resolve_skip(self, skip: Skip | None = None) -> SkipConfig:
        """The skip to run at: the explicit one, else the one of :meth:`using_skip`, else the stored one."""
        if skip is not None:
            return SkipConfig.parse(skip, self.num_stages)
        return in_force(self) or self._skip

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: they run at the skip in force, which is none of theirs."""
        return {**super().__getstate__(), '_skip': self.resolve_skip()}

    def skipped_blocks(self, skip: Skip) -> list[nn.Module]:
        """The blocks that a forward at ``skip`` does not run."""
        raise NotImplementedError

    def idle_norms(self, skip: Skip) -> list[nn.Module]:
        """The norms of blocks that a forward at ``skip`` runs, of the set that it does not use."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Both torch and mmengine pass the whole dict to the parent before they cut it up for its children, so that
        # what is added here is found by the norms. It is the caller's copy.
        if not prefix:
            self._strip_detector_prefix(state_dict)
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

    def _clone_missing_norms(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Give weights without a second set of norms a copy of the first; refuse those of another stage split."""
        wanted = [prefix + key for key in self.state_dict() if '_skip.' in key]
        given = [key for key in state_dict if key.startswith(prefix) and '_skip.' in key]
        self.num_untrained_norms = 0
        if wanted and given:
            split, expected = _stage_split(given, prefix), _stage_split(wanted, prefix)
            if split != expected:
                raise UserError(
                    f'these weights were trained with {split} mandatory blocks a stage, '
                    f'but this {type(self).__name__} has {expected}: use the architecture that they were trained with'
                )
            return
        cloned = {key: state_dict[twin] for key in wanted if (twin := key.replace('_skip.', '.')) in state_dict}
        if cloned:
            state_dict.update((key, value.clone()) for key, value in cloned.items())
            self.num_untrained_norms = len({key.rpartition('.')[0] for key in cloned})
            warnings.warn(
                f'{self.num_untrained_norms} skip-aware norms are not in these weights and were cloned from their '
                'twins: the skipped sub-networks are untrained',
                stacklevel=2,
            )


def _stage_split(keys: Iterable[str], prefix: str) -> list[int]:
    """Mandatory blocks a stage, counted in norm keys such as ``layer3.0.bn1_skip.weight``."""
    blocks = {tuple(key.removeprefix(prefix).split('.')[:2]) for key in keys}
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
