"""Local files: written whole or not at all, locked against other processes, read as sound JSON, told apart by hash."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, SoftFileLock, Timeout

from .errors import UserError

PARTIAL = '.partial'  # how the name of a file ends while it is written
LEFT_AFTER = 3600.0  # seconds: nothing is written for that long, so what is older was left by a killed process

PathLike = str | os.PathLike[str]


def partial_path(path: PathLike) -> Path:
    """A name beside a file, for this one writer: ``NAME.<host>-<pid>-<random>.partial``."""
    return Path(f'{os.fspath(path)}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}')


def write_atomically(path: PathLike, content: bytes) -> None:
    """Write a file beside its place, force it to disk, and move it there.

    Raises:
        OSError: it cannot be written; what was there before is untouched, and nothing is left beside it.
    """
    _write({path: content})


def write_together(contents: Mapping[Any, bytes | None]) -> None:
    """Write several files beside their places, and move them there once all are on the disk.

    What killed writers of the same files have left beside them is removed.

    Args:
        contents: by path; None removes the file that is there.

    Raises:
        OSError: as :func:`write_atomically`, for all of them.
    """
    for path in contents:
        remove_left(path)
    _write(contents)


def _write(contents: Mapping[Any, bytes | None]) -> None:
    partials = {path: partial_path(path) for path, content in contents.items() if content is not None}
    path = None
    try:
        for path, partial in partials.items():
            with open(partial, 'wb') as file:
                file.write(contents[path] or b'')
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            if path in partials:
                os.replace(partials[path], path)
            else:
                Path(path).unlink(missing_ok=True)
    except BaseException as error:  # Ctrl-C as well
        for partial in partials.values():
            with contextlib.suppress(OSError):
                os.remove(partial)
        if isinstance(error, OSError):  # of a full disk it says only that it is full
            error.filename = os.fspath(path or '')
        raise


def json_bytes(content: Any) -> bytes:
    """JSON that every reader understands: UTF-8, and null for NaN and Infinity, which JSON lacks."""
    content = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return (json.dumps(content, indent=2, ensure_ascii=False) + '\n').encode('utf-8', 'replace')


def write_json(path: PathLike, content: Any) -> None:
    """Write :func:`json_bytes`, as :func:`write_together` does."""
    write_together({path: json_bytes(content)})


def left_partials(folder: PathLike, pattern: str = '*') -> list[Path]:
    """What writers that were killed have left in a folder; files that a live process is writing are not among them.

    Args:
        folder: where to look, not below it.
        pattern: of the names of the files that were to be written.
    """
    return [path for path in Path(folder).glob(f'{pattern}{PARTIAL}') if not _is_being_written(path)]


def remove_left(path: PathLike) -> None:
    """Remove what killed writers of a file, or of a folder, have left beside it."""
    path = Path(path)
    for left in left_partials(path.parent, f'{glob.escape(path.name)}.*'):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def name_problem(path: PathLike) -> str | None:
    """Why a file system does not take a file's name, as it is while it is written; None where it does."""
    try:
        os.stat(partial_path(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.strerror
    return None


def _is_being_written(partial: Path) -> bool:
    try:
        age = time.time() - partial.stat().st_mtime
    except OSError:  # moved into its place meanwhile
        return True
    writer = re.search(rf'\.([^.]+)-(\d+)-[0-9a-f]+{re.escape(PARTIAL)}$', partial.name)
    return writer is not None and age < LEFT_AFTER and (writer[1] != _host() or _runs(int(writer[2])))


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs."""
    if os.name == 'nt':  # where a signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _host() -> str:
    return re.sub(r'[^\w-]', '_', socket.gethostname())[:32]


@contextlib.contextmanager
def locked(path: PathLike, seconds: float = 60, remedy: str = 'wait until it ends, or end it') -> Iterator[None]:
    """Keep a file or a folder to this thread of this process.

    The lock is the operating system's, on ``.NAME.lock`` beside the file (inside the folder): it ends with its process,
    killed or not. The file stays, and says whose it is.

    Args:
        path: what is locked; a folder has to exist.
        seconds: how long to wait for another one; 0 does not wait.
        remedy: what to do where another one has it, for the message.

    Raises:
        UserError: another process or thread has it; says which one.
        OSError: the lock file cannot be written.
    """
    path = Path(path)
    file = path / '.lock' if path.is_dir() else path.with_name(f'.{path.name}.lock')
    lock = FileLock(file)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        with contextlib.suppress(OSError, ValueError):
            owner = file.read_text(encoding='utf-8').strip()
        raise UserError(f'{path} is in use by {owner or "another process"}: {remedy}') from error
    try:
        with contextlib.suppress(OSError):  # for the message alone
            if not isinstance(lock, SoftFileLock):  # which a file system without locks falls back to, and fills itself
                file.write_text(f'process {os.getpid()} on {socket.gethostname()}', encoding='utf-8')
        yield
    finally:
        lock.release()


def read_json(path: PathLike, remedy: str, constants: bool = False) -> dict[str, Any]:
    """Read a file that holds one JSON object, as UTF-8 with or without a byte order mark.

    A number beyond a float's range, such as 1e400, is read as infinite: whoever uses a number checks it.

    Args:
        path: of the file.
        remedy: what to do if it does not, for the message.
        constants: read NaN and Infinity as well, which Python writes.

    Raises:
        UserError: there is no such file, or it is empty, cut off, not UTF-8, not JSON or no object, nested too deeply,
            or holds NaN (unless ``constants``), a number of thousands of digits, or a text with a null byte or a lone
            surrogate.
    """
    try:
        raw = Path(path).read_bytes()
        text = raw.decode('utf-8-sig')
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no path at all
        reason = error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'
        raise UserError(f'cannot read {path} ({reason}): {remedy}') from error
    if not text.strip():
        raise UserError(f'{path} is empty: {remedy}')
    try:
        content = json.loads(text, parse_constant=float if constants else _refuse_constant)
        if re.search(r'\\u(0000|[dD][89a-fA-F])', text):
            _require_characters(content)
    except RecursionError as error:
        raise UserError(f'{path} is nested too deeply: {remedy}') from error
    except ValueError as error:
        raise UserError(f'{path} is not whole JSON ({error}): {remedy}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no JSON object: {remedy}')
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f'it holds {name}')


def _require_characters(content: Any) -> None:
    """Make sure that every text can be printed and be a file's name."""
    parts = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str) and re.search('[\0\ud800-\udfff]', part):
            raise ValueError(f'a text holds a null byte or a lone surrogate: {ascii(part)[:60]}')


def file_sha256(path: PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
