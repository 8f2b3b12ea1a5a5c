"""The authors' ADN weights of ImageNet: downloaded, checked and converted once, by command or by ``adn://<name>``."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from ..config import require_writable
from ..errors import UserError
from ..files import file_sha256, partial_path, remove_left, write_atomically
from .convert import convert_checkpoint
from .safe_loading import load_from_local
from .web import fetch, require_no_page

FOLDER = 'pretrained'  # in the working directory, as data/ and work_dirs/ are
DRIVE = 'https://drive.google.com/'
RELEASE = (
    'https://github.com/wchkang/depth/releases/download/v1.0.0/'
    'weights-{}_kd_ce_from_resnext101_32x8d_swsl_imagenet21k_1k_T2_T2_step3_finetune.pth'
)


@dataclass(frozen=True)
class Source:
    """Where weights are; the authors publish no SHA-256, so that the first download's is kept and compared."""

    url: str
    sha256: str | None = None
    averaged: bool = False  # whether the authors test the moving average, where a file holds both


SOURCES = {
    'resnet50': Source(f'{DRIVE}uc?id=1thbJDkDYhhM7ZI3LY8d9dZ4TWSbYMT0b'),
    'resnet50vd': Source(RELEASE.format('resnet50vd')),
    'resnet101vd': Source(RELEASE.format('resnet101vd')),
    'mobilenet_v2': Source(f'{DRIVE}uc?id=1bft5SECYXOFjEhPSkAp2Z9d1U-7w2Mnz'),
    'vit_b_16': Source(f'{DRIVE}uc?id=1DlHNgjDCKJOWWFSuQIjClA5Ewbc6Jy3u', averaged=True),
    'swin_t': Source(f'{DRIVE}uc?id=10twk67rVBAoKFKZSkgsXEzx1RABX73kF', averaged=True),
}


def weights_file(name: str, folder: str | os.PathLike[str] = FOLDER) -> Path:
    """Where :func:`get_weights` puts the weights of a name."""
    return Path(folder) / f'{name}_adn_imagenet.pth'


def is_there(name: str, folder: str | os.PathLike[str] = FOLDER) -> bool:
    """Whether :func:`get_weights` has nothing to do: a file that is damaged is downloaded again."""
    path = weights_file(name, folder)
    if not path.is_file():
        return False
    try:
        load_from_local(path)
    except UserError as error:
        print_log(str(error), 'current', logging.WARNING)
        return False
    return True


def get_weights(name: str, folder: str | os.PathLike[str] = FOLDER) -> Path:
    """Download and convert the authors' weights, unless they are there and whole.

    Args:
        name: one of ``SOURCES``.
        folder: it also gets ``<name>_adn_imagenet.source.sha256``, of the file as it was downloaded.

    Returns:
        The file that ``init_cfg`` takes.

    Raises:
        UserError: they cannot be had; says how to go on by hand. The folder is left as it was.
    """
    if name not in SOURCES:
        raise UserError(f'there are no ADN weights {name!r}: known are {", ".join(SOURCES)}')
    out = weights_file(name, folder)
    if is_there(name, folder):
        return out
    require_writable(folder)
    url, record = SOURCES[name].url, out.with_suffix('.source.sha256')
    remove_left(out)
    scratch = partial_path(out)
    got, converted = scratch / url.rpartition('/')[2], scratch / out.name
    try:
        scratch.mkdir()
        (_fetch_from_drive if url.startswith(DRIVE) else fetch)(url, got)
        digest = _check(got, SOURCES[name].sha256, record)
        averaged = SOURCES[name].averaged
        convert_checkpoint(got, converted, None if averaged else False, name, prefer_ema=averaged or None)
        write_atomically(record, f'{digest}  {got.name}\n'.encode())
        os.replace(converted, out)  # whole, also where two machines of one folder do this at once
    except (OSError, HTTPException, ValueError) as error:
        reason = ' '.join(str(error).replace(f'{got}:', 'it').replace(str(got), 'it').split())
        raise UserError(
            f'cannot get {name} from {url} ({reason}): try again, or save that file yourself and run '
            f'python tools/convert_checkpoint.py FILE {out} --arch {name}'
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _fetch_from_drive(url: str, path: Path) -> None:
    try:
        import gdown
    except ImportError as error:
        raise UserError('Google Drive needs a package: pip install gdown') from error
    try:
        gdown.download(url, str(path))
    except Exception as error:  # its own, and those of requests
        raise UserError(str(error)) from error
    require_no_page(path)


def _check(path: Path, known: str | None, record: Path) -> str:
    """Refuse what is not the file that is known; return its SHA-256."""
    digest = file_sha256(path)
    if known is None and record.is_file():
        known = record.read_text().partition(' ')[0]
    if known not in (None, digest):
        hint = f'; remove {record} if it may be another one now' if record.is_file() else ''
        raise UserError(f'its sha256 is {digest}, but that of the right file is {known}{hint}')
    return digest


@CheckpointLoader.register_scheme('adn://')
def load_from_adn(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read ``adn://<name>``, which is ``pretrained/<name>_adn_imagenet.pth``, downloaded if it is missing.

    Of the processes of a training one on each machine downloads, and the others wait for it.

    Raises:
        UserError: in all processes, where one could not download it; as :func:`get_weights`.
    """
    name, problem = filename.removeprefix('adn://'), ''
    if int(os.environ.get('LOCAL_RANK', 0)) == 0:
        try:
            get_weights(name)
        except UserError as error:
            problem = str(error)
    problem = next(filter(None, all_gather_object(problem)), '')
    if problem:
        raise UserError(problem)
    return load_from_local(weights_file(name), map_location)
