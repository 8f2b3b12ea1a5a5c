"""Skip codes: which stages of a backbone, and which parts beyond it, leave out their skippable sub-path.

A code has one letter a stage, the first letter for stage 1: ``T`` (true) means that the stage's
skippable sub-path is skipped, ``F`` (false) that it runs. Of a backbone with four stages, ``FFFF``
is the super-net and ``TTTT`` the base-net; there are 2^4 sub-networks in all. A detector that can skip
parts beyond its backbone has a letter more for each, after a hyphen: ``FFFF-T`` skips its head's alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product

from .errors import UserError

Groups = int | Sequence[int]  # 4 letters, or (4, 1): those of a backbone, then one of each part beyond it


@dataclass(frozen=True)
class SkipConfig:
    """Which stages and parts are skipped, as one flag each.

    Codes with the same flags are equal, however they are grouped.

    Args:
        flags: True where the skippable sub-path is skipped, stage 1 first.
        groups: how many letters stand between hyphens; all in one where it is left out.
    """

    flags: tuple[bool, ...]
    groups: tuple[int, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Refuse what is not a tuple of bools, such as a code, whose letters would all count as true."""
        if not (isinstance(self.flags, tuple) and all(isinstance(flag, bool) for flag in self.flags)):
            raise UserError(
                f'SkipConfig takes a tuple of bools, but got {self.flags!r}: read codes by SkipConfig.parse'
            )
        object.__setattr__(self, 'groups', tuple(self.groups) or (len(self.flags),))

    @classmethod
    def parse(cls, code: str | SkipConfig | Iterable[bool], groups: Groups | None = None) -> SkipConfig:
        """Read a skip code.

        Args:
            code: a code such as ``'TFFF'`` or ``'TFFF-T'`` (either case), a SkipConfig, or one bool a letter.
            groups: how many letters the code must have, or each of its groups; hyphens between groups may be left out.
                None takes any number but zero, in the groups that the hyphens make.

        Raises:
            UserError: a ValueError that says what was given and what is valid.
        """
        given: tuple[int, ...] = ()
        if isinstance(code, str):
            flags = tuple(letter in 'Tt' for letter in code if letter != '-')
            letters_are_valid = set(code) <= set('TtFf-')  # before upper(), which makes 'FF' of the ligature 'ﬀ'
            given = tuple(map(len, code.split('-')))
        elif isinstance(code, Iterable):
            flags = tuple(code)
            letters_are_valid = all(isinstance(flag, bool) for flag in flags)
            given = code.groups if isinstance(code, SkipConfig) else (len(flags),)
        else:
            flags, letters_are_valid = (), False
        wanted = _lengths(groups) if groups else given
        # Each hyphen stands between two groups.
        is_grouped = min(given, default=0) > 0 and set(accumulate(given)) <= set(accumulate(wanted))
        if not (letters_are_valid and is_grouped and len(flags) == sum(wanted)):
            n = wanted if groups else 4
            beyond = f', and one of each of {len(wanted) - 1} parts beyond' if groups and len(wanted) > 1 else ''
            raise UserError(
                f'{str(code) if isinstance(code, SkipConfig) else code!r} is not a skip code: it has one letter a '
                f'stage ({wanted[0] if groups else "for example 4"} in all{beyond}), T to skip it and F to run it, '
                f'such as {cls.super_net(n)} (super-net) or {cls.base_net(n)} (base-net)'
            )
        return cls(flags, wanted)

    @classmethod
    def parse_list(cls, codes: str, groups: Groups) -> list[SkipConfig]:
        """Read what ``--skip`` takes: one code, a comma list of codes, or ``all``.

        Returns:
            The codes in the order given, each once.

        Raises:
            UserError: as :meth:`parse` does.
        """
        if codes.strip().lower() == 'all':
            return cls.all(groups)
        parsed = (cls.parse(code.strip(), groups) for code in codes.split(','))
        return list(dict.fromkeys(parsed))

    @classmethod
    def super_net(cls, groups: Groups) -> SkipConfig:
        """The code that skips nothing."""
        return cls._alike(False, groups)

    @classmethod
    def base_net(cls, groups: Groups) -> SkipConfig:
        """The code that skips all that can be skipped."""
        return cls._alike(True, groups)

    @classmethod
    def all(cls, groups: Groups) -> list[SkipConfig]:
        """All 2^letters codes, from the super-net to the base-net; the last letter changes first."""
        lengths = _lengths(groups)
        return [cls(flags, lengths) for flags in product((False, True), repeat=sum(lengths))]

    @classmethod
    def _alike(cls, flag: bool, groups: Groups) -> SkipConfig:
        return cls((flag,) * sum(_lengths(groups)), _lengths(groups))

    def __str__(self) -> str:
        letters = ''.join('T' if flag else 'F' for flag in self.flags)
        ends = list(accumulate(self.groups))
        return '-'.join(letters[end - number : end] for end, number in zip(ends, self.groups))

    def __iter__(self) -> Iterator[bool]:
        return iter(self.flags)

    def __len__(self) -> int:
        return len(self.flags)


def _lengths(groups: Groups) -> tuple[int, ...]:
    return (groups,) if isinstance(groups, int) else tuple(groups)
