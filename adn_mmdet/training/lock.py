"""One training at a time in a work folder: two would delete each other's checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..files import locked
from ..ranks import once

# The workers of a killed training notice within 5 s, and hold its lock until then.
SECONDS = 8.0


@contextlib.contextmanager
def only_training_in(folder: str) -> Iterator[None]:
    """Keep a work folder to this training; on several machines, that of rank 0, which alone writes checkpoints.

    Raises:
        UserError: another training has it, or it cannot be written to; says which process on which machine.
        SystemExit: on the other ranks, then.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder, SECONDS, 'wait until that ends, or give another --work-dir'))
            except OSError as error:
                raise UserError(f'cannot write to {folder} ({error.strerror}): give another --work-dir') from error

        once(lock)
        yield
