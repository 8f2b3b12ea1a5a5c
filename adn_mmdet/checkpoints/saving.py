"""Writes files of tensors: whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import remove_left, write_atomically


def save(content: dict[str, Any], path: Path) -> None:
    """Write a file as torch.save does; what an earlier save of it left, killed while it wrote, is removed.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    remove_left(path)
    with io.BytesIO() as file:
        torch.save(content, file)
        try:
            write_atomically(path, file.getvalue())
        except OSError as error:
            raise UserError(f'cannot write {path} ({error.strerror}): make room, or give another file') from error
