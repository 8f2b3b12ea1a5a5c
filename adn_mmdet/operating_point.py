"""Operating points: at which depth a detector runs, on which input size, with how many region proposals.

``TTFF@640/300`` is the skip code, the short side of the input in pixels, and the number of proposals. What is left out
is the config's own: ``TTFF``, ``TTFF@640`` and ``FFFF/300`` are points too, and ``@640`` of a net that has no depth to
choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import total_ordering
from typing import Any

from .errors import UserError
from .skip_config import Groups, SkipConfig

# The most is far above what detectors run at: beyond it a number is a slip, and would only fill the memory.
LIMITS = {'size': (32, 16384), 'proposals': (1, 100_000)}
MEANS = {'size': 'the short side of the input in pixels', 'proposals': 'the number of region proposals'}
SPELLING = re.compile('([^@/]*)(?:@([0-9]{1,9}))?(?:/([0-9]{1,9}))?')


@total_ordering
@dataclass(frozen=True)
class OperatingPoint:
    """A depth, an input size and a number of proposals; None is the config's own.

    Points are ordered as :meth:`product` puts them: the config's own size and larger ones first, of equal sizes the
    config's own proposals and more of them, of these the super-net first and the base-net last.

    Args:
        skip: the skip code.
        size: the short side of the input in pixels, after resizing and before padding.
        proposals: how many region proposals a two-stage detector keeps (``max_per_img`` of its RPN at test time).

    Raises:
        UserError: a size or a number of proposals that is not in LIMITS.
    """

    skip: SkipConfig | None = None
    size: int | None = None
    proposals: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.skip, (SkipConfig, type(None))):
            raise UserError(f'skip should be a SkipConfig, but got {self.skip!r}: read points by OperatingPoint.parse')
        for name in LIMITS:
            if (number := getattr(self, name)) is not None:
                _require(name, number)

    @classmethod
    def parse(cls, text: str | SkipConfig | OperatingPoint, groups: Groups | None = None) -> OperatingPoint:
        """Read an operating point.

        Args:
            text: such as ``'TTFF@640/300'``; a skip code or a point is one as well.
            groups: how many letters a skip code must have, or each of its groups; None takes any number.

        Raises:
            UserError: a ValueError that says what was given and what is valid.
        """
        if isinstance(text, OperatingPoint):
            skip = text.skip and SkipConfig.parse(text.skip, groups)
            return cls(skip, text.size, text.proposals)
        if isinstance(text, SkipConfig):
            return cls(SkipConfig.parse(text, groups))
        found = SPELLING.fullmatch(text) if isinstance(text, str) else None
        if not (found and text):
            raise UserError(
                f'{text!r} is not an operating point: give a skip code, @ and {MEANS["size"]}, / and '
                f"{MEANS['proposals']}, such as TTFF@640/300; what is left out is the config's own"
            )
        code, size, proposals = found.groups()
        skip = SkipConfig.parse(code, groups) if code else None
        return cls(skip, int(size) if size else None, int(proposals) if proposals else None)

    @classmethod
    def product(
        cls,
        skips: Iterable[SkipConfig | None],
        sizes: Iterable[int | None] | None = None,
        proposals: Iterable[int | None] | None = None,
    ) -> list[OperatingPoint]:
        """Every skip code at every size with every number of proposals, each once.

        Args:
            skips: codes; ``[None]`` of a net that has no depth to choose.
            sizes: None takes the config's own.
            proposals: None takes the config's own.

        Returns:
            The largest size first, of each size the largest number of proposals first, of these the codes in the order
            given; the config's own (None) comes before all numbers.
        """
        own: list[int | None] = [None]
        all_sizes, all_proposals = (
            sorted(set(own if numbers is None else numbers), key=_largest_first) for numbers in (sizes, proposals)
        )
        codes = list(dict.fromkeys(skips))
        return [cls(code, size, number) for size in all_sizes for number in all_proposals for code in codes]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> OperatingPoint:
        """The point of a row of results, by its keys ``skip``, ``size`` and ``proposals``; the last two may be absent.

        Raises:
            UserError: they hold something else.
        """
        skip = row['skip'] and SkipConfig.parse(row['skip'])
        return cls(skip or None, row.get('size'), row.get('proposals'))

    def as_row(self) -> dict[str, str | int | None]:
        """What :meth:`from_row` reads."""
        return dict(skip=str(self.skip) if self.skip else None, size=self.size, proposals=self.proposals)

    def filled(self, own: OperatingPoint) -> OperatingPoint:
        """This point with the size and proposals of the config's own one where it leaves them out."""
        size = own.size if self.size is None else self.size
        return OperatingPoint(self.skip, size, own.proposals if self.proposals is None else self.proposals)

    def relative_to(self, own: OperatingPoint) -> OperatingPoint:
        """This point with None where its size or its proposals are those of the config's own one."""
        size = None if self.size == own.size else self.size
        return OperatingPoint(self.skip, size, None if self.proposals == own.proposals else self.proposals)

    def super_net(self) -> OperatingPoint:
        """The point with nothing skipped, at the same size and proposals."""
        skip = self.skip and SkipConfig.super_net(self.skip.groups)
        return OperatingPoint(skip or None, self.size, self.proposals)

    def __str__(self) -> str:
        """The spelling that :meth:`parse` reads; that of the config's own point of a net without depths is empty."""
        size = '' if self.size is None else f'@{self.size}'
        return f'{self.skip or ""}{size}' + ('' if self.proposals is None else f'/{self.proposals}')

    def __lt__(self, other: object) -> bool:
        return self._place() < other._place() if isinstance(other, OperatingPoint) else NotImplemented

    def _place(self) -> tuple[Any, ...]:
        return *_largest_first(self.size), *_largest_first(self.proposals), str(self.skip or '')


def parse_numbers(name: str, text: str | None) -> list[int | None]:
    """Read what ``--sizes`` and ``--proposals`` take.

    Args:
        name: ``'size'`` or ``'proposals'``.
        text: a comma list, such as ``'800,640,480'``; None is the config's own.

    Returns:
        The numbers in the order given, each once; ``[None]`` for None.

    Raises:
        UserError: one is no number, or not in LIMITS.
    """
    if text is None:
        return [None]
    parts = map(str.strip, text.split(','))
    numbers: list[Any] = [int(part) if re.fullmatch('[0-9]{1,9}', part) else part for part in parts]
    for number in numbers:
        _require(name, number)
    return list(dict.fromkeys(numbers))


def _require(name: str, number: Any) -> None:
    least, most = LIMITS[name]
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise UserError(f'{name} should be {MEANS[name]}, a whole number from {least} to {most}, but got {number!r}')


def _largest_first(number: int | None) -> tuple[bool, int]:
    return number is not None, -(number or 0)
