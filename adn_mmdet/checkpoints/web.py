"""What mmengine would download and unpickle is downloaded, checked and read as local files are: nothing in it runs.

Importing this module replaces mmengine's loaders of all schemes, for ``load_from``, ``init_cfg``, ``--resume``,
``init_detector`` and ``DetInferencer`` alike.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    _get_mmengine_home,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from rich.console import Console
from rich.progress import wrap_file

from ..config import require_writable
from ..errors import UserError
from ..files import file_sha256, locked, partial_path, remove_left
from .loading import read_weights
from .safe_loading import load_from_local

TIMEOUT = 60  # seconds without a byte
PATIENCE = 3600  # seconds to wait for another process that downloads the same file
HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # in a file's name: the first digits of its SHA-256

# mmengine's lists of URLs (or of files in its own folder) by name.
LISTS: dict[str, Callable[[], dict[str, str]]] = {
    'torchvision': get_torchvision_models,
    'modelzoo': get_torchvision_models,
    'open-mmlab': get_external_models,
    'openmmlab': get_external_models,
    'mmcls': get_mmcls_models,
}
PINNED = ('torchvision', 'modelzoo')  # whose names hold a hash that is meant to be checked


def fetch(url: str, path: Path) -> None:
    """Download a file.

    Raises:
        UserError: the connection was cut, or a web page came.
        OSError, HTTPException, ValueError: it cannot be had.
    """
    with urlopen(url, timeout=TIMEOUT) as response, path.open('wb') as file:
        size = int(response.headers.get('Content-Length', 0)) or None
        with wrap_file(response, size or 0, description='Downloading', console=Console(stderr=True)) as stream:
            shutil.copyfileobj(stream, file)
    if size and path.stat().st_size != size:
        raise UserError(f'the connection was cut after {path.stat().st_size} of {size} bytes')
    require_no_page(path)


def require_no_page(path: Path) -> None:
    """Refuse what a server sends to be read by people."""
    with path.open('rb') as file:
        if file.read(100).lstrip().startswith(b'<'):
            raise UserError('a web page came instead of the file')


def cached(url: str, pinned: bool = False) -> Path:
    """The local copy of a file: downloaded once, into torch's cache, and kept if it is a checkpoint.

    Args:
        url: its address.
        pinned: whether the file's name holds the first digits of its SHA-256, which are then compared, as for all of
            download.pytorch.org. Where not, the SHA-256 is logged.

    Raises:
        UserError: it cannot be downloaded, is no checkpoint, or not the pinned one.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f'{url} is no address of a file ({error}): check it') from error
    name = os.path.basename(parts.path) or 'checkpoint.pth'
    found = HASH.search(name)
    digits = found[1] if found and (pinned or parts.hostname == 'download.pytorch.org') else ''
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    if not found:  # such as latest.pth, of which there are many
        folder /= hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / name
    if not path.is_file():
        _download(url, path, digits)
    sha256 = file_sha256(path)
    if not digits:
        print_log(f'{url} is kept in {path}, its SHA-256 is {sha256}', 'current')
    elif not sha256.startswith(digits):
        raise UserError(f'{path} is not the file that its name says, its SHA-256 is {sha256}: remove it')
    return path


def _download(url: str, path: Path, digits: str) -> None:
    """Put what is at a URL into a file, unless another process does; what a killed one left is removed."""
    require_writable(path.parent)
    partial = partial_path(path)
    try:
        with locked(path, PATIENCE):
            remove_left(path)
            if path.is_file():
                return
            fetch(url, partial)
            sha256 = file_sha256(partial)
            if not sha256.startswith(digits):
                raise UserError(f'its SHA-256 is {sha256}, but its name says {digits}…')
            load_from_local(partial, 'cpu')
            os.replace(partial, path)
    except (OSError, HTTPException, ValueError) as error:
        reason = ' '.join(str(error).replace(str(partial), 'it').split())
        raise UserError(
            f'cannot use {url} ({reason}): check the address and the network, or save the file yourself and give its '
            'path'
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@CheckpointLoader.register_scheme(['http://', 'https://'], force=True)
def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read the checkpoint at a URL; raises as :func:`cached`."""
    return load_from_local(cached(filename), map_location)


@CheckpointLoader.register_scheme([f'{scheme}://' for scheme in LISTS], force=True)
def load_from_model_zoo(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read ``torchvision://<name>``, ``open-mmlab://<name>``, ``mmcls://<name>`` and the like.

    Raises:
        UserError: there is no such name; says the nearest ones. Or as :func:`cached`.
    """
    scheme, _, name = filename.partition('://')
    urls = LISTS[scheme]()
    if LISTS[scheme] is get_external_models:
        name = get_deprecated_model_names().get(name, name)
    if name not in urls:
        near = difflib.get_close_matches(name, urls, cutoff=0.4)
        raise UserError(
            f'{scheme}:// has no weights {name!r}: {f"did you mean {near[0]}?" if near else "check the name"}'
        )
    if '://' in urls[name]:
        path = cached(urls[name], scheme in PINNED)
    else:
        path = Path(_get_mmengine_home(), urls[name])
    checkpoint = load_from_local(path, map_location)
    if scheme == 'mmcls':  # classifiers, of which the backbone is wanted
        weights = read_weights(checkpoint, filename).items()
        checkpoint = {key.removeprefix('backbone.'): value for key, value in weights if key.startswith('backbone.')}
    return checkpoint


@CheckpointLoader.register_scheme([r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'], force=True)
def load_from_storage(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from the storage behind mmengine's petrel backend.

    Raises:
        UserError: it cannot be had from there; PAVI is not read at all.
    """
    if filename.startswith('pavi://'):
        raise UserError(f'{filename}: PAVI is not read: save the file yourself and give its path')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'checkpoint.pth')
        try:
            path.write_bytes(get_file_backend(filename, backend_args={'backend': 'petrel'}).get(filename))
            return load_from_local(path, map_location)
        except (ImportError, OSError, UserError) as error:
            raise UserError(f'cannot use {filename} ({str(error).replace(str(path), "it")})') from error
