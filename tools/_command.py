"""What every script shares: what a user got wrong is one line and exit code 2, without a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

try:
    from adn_mmdet import UserError
except ImportError as error:  # the version gate's diagnosis, or a package that is not installed
    print(f'error: {error}', file=sys.stderr)
    raise SystemExit(2) from None

Main = Callable[[Sequence[str] | None], None]


def command(main: Main) -> Callable[..., int]:
    """Turn ``main(argv)`` into a function that returns an exit code: 0, or 2 for what a user got wrong."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            main(argv)
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        return 0

    return run
