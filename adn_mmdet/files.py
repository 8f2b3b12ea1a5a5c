"""Local files: written whole or not at all, and told apart by what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import os

PARTIAL = '.partial'  # added to the name of a file while it is written


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside its place, force it to disk, and move it there.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    partial = f'{os.fspath(path)}{PARTIAL}'
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
