"""Skip codes: which stages of a backbone leave out their skippable sub-path.

A code has one letter a stage, the first letter for stage 1: ``T`` (true) means that the stage's
skippable sub-path is skipped, ``F`` (false) that it runs. Of a backbone with four stages, ``FFFF``
is the super-net and ``TTTT`` the base-net; there are 2^4 sub-networks in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from .errors import UserError


@dataclass(frozen=True)
class SkipConfig:
    """Which stages are skipped, as one flag a stage.

    Args:
        flags: True where a stage's skippable sub-path is skipped, stage 1 first.
    """

    flags: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Refuse what is not a tuple of bools, such as a code, whose letters would all count as true."""
        if not (isinstance(self.flags, tuple) and all(isinstance(flag, bool) for flag in self.flags)):
            raise UserError(
                f'SkipConfig takes a tuple of bools, but got {self.flags!r}: read codes by SkipConfig.parse'
            )

    @classmethod
    def parse(cls, code: str | SkipConfig | Iterable[bool], num_stages: int | None = None) -> SkipConfig:
        """Read a skip code.

        Args:
            code: a code such as ``'TFFF'`` (either case), a SkipConfig, or one bool a stage.
            num_stages: how many letters the code must have; None takes any number but zero.

        Raises:
            UserError: a ValueError that says what was given and what is valid.
        """
        if isinstance(code, str):
            flags = tuple(letter in 'Tt' for letter in code)
            letters_are_valid = set(code) <= set('TtFf')  # before upper(), which makes 'FF' of the ligature 'ﬀ'
        elif isinstance(code, Iterable):
            flags = tuple(code)
            letters_are_valid = all(isinstance(flag, bool) for flag in flags)
        else:
            flags, letters_are_valid = (), False
        length_is_valid = len(flags) == num_stages if num_stages else len(flags) > 0
        if not (letters_are_valid and length_is_valid):
            n = num_stages or 4
            raise UserError(
                f'{str(code) if isinstance(code, SkipConfig) else code!r} is not a skip code: it has one letter a '
                f'stage ({n if num_stages else "for example 4"} in all), T to skip it and F to run it, '
                f'such as {cls.super_net(n)} (super-net) or {cls.base_net(n)} (base-net)'
            )
        return cls(flags)

    @classmethod
    def parse_list(cls, codes: str, num_stages: int) -> list[SkipConfig]:
        """Read what ``--skip`` takes: one code, a comma list of codes, or ``all``.

        Returns:
            The codes in the order given, each once.

        Raises:
            UserError: as :meth:`parse` does.
        """
        if codes.strip().lower() == 'all':
            return cls.all(num_stages)
        parsed = (cls.parse(code.strip(), num_stages) for code in codes.split(','))
        return list(dict.fromkeys(parsed))

    @classmethod
    def super_net(cls, num_stages: int) -> SkipConfig:
        """The code that skips nothing."""
        return cls((False,) * num_stages)

    @classmethod
    def base_net(cls, num_stages: int) -> SkipConfig:
        """The code that skips all that can be skipped."""
        return cls((True,) * num_stages)

    @classmethod
    def all(cls, num_stages: int) -> list[SkipConfig]:
        """All 2^num_stages codes, from the super-net to the base-net."""
        return [cls(flags) for flags in product((False, True), repeat=num_stages)]

    def __str__(self) -> str:
        return ''.join('T' if flag else 'F' for flag in self.flags)

    def __iter__(self) -> Iterator[bool]:
        return iter(self.flags)

    def __len__(self) -> int:
        return len(self.flags)
