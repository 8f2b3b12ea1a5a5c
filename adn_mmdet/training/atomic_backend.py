"""AtomicBackend: local files that are whole or not there, whenever a process is killed and however full the disk is."""

from __future__ import annotations

import os

from mmengine.fileio import LocalBackend, register_backend

from ..errors import UserError
from ..files import write_atomically


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """mmengine's local files, each written beside its place, forced to disk and then moved there."""

    def put(self, obj: bytes, filepath: str | os.PathLike[str]) -> None:
        """Write a file.

        Raises:
            UserError: it cannot be written (disk full, quota, …); what was there before is untouched.
        """
        try:
            os.makedirs(os.path.dirname(filepath) or '.', exist_ok=True)
            write_atomically(filepath, obj)
        except OSError as error:
            raise UserError(
                f'cannot save {filepath} ({error.strerror}): make room, then go on from the previous checkpoint, '
                'which is whole, with --resume'
            ) from error

    def put_text(self, obj: str, filepath: str | os.PathLike[str], encoding: str = 'utf-8') -> None:
        """Write a text file; raises as :meth:`put`."""
        self.put(obj.encode(encoding), filepath)
