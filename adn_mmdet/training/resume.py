"""Which checkpoint a training goes on from."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from ..checkpoints import load_from_local
from ..errors import UserError


def resume(cfg: Config, checkpoint: str) -> None:
    """Let a config go on from a checkpoint; its random seed comes with it, as the order of the images hangs on that.

    Args:
        cfg: a config, changed in place.
        checkpoint: a file, or ``auto`` for the latest in the work folder; where there is none, the training is new.

    Raises:
        UserError: the file is missing, cut off, or has no more than weights.
    """
    path = find_checkpoint(cfg.work_dir) if checkpoint == 'auto' else checkpoint
    if path is None:
        _say(f'{cfg.work_dir} has no checkpoint to resume: a new training starts')
        cfg.resume = False
        return
    content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    if not {'meta', 'message_hub', 'optimizer'} <= content.keys():
        raise UserError(f'{path} has weights alone, no training to resume: start from them with load_from={path}')
    cfg.resume, cfg.load_from = True, path
    if cfg.get('randomness', {}).get('seed') is None:
        cfg.merge_from_dict({'randomness.seed': content['meta'].get('seed')})


def find_checkpoint(work_dir: str | os.PathLike[str]) -> str | None:
    """The file that ``last_checkpoint`` names, or else the whole one that got furthest.

    Returns:
        A path; None where the folder has no whole checkpoint of a training.
    """
    folder = Path(work_dir)
    if (folder / 'last_checkpoint').is_file():
        path = (folder / 'last_checkpoint').read_text().strip()
        here = folder / os.path.basename(path)  # the folder may have been moved or copied
        path = str(here) if here.is_file() else path
        try:
            load_from_local(path, 'cpu')
            return path
        except UserError as error:
            _say(f'last_checkpoint does not help: {error}')
    elif not any(folder.glob('*.pth')):
        return None
    whole = []
    for file in folder.glob('*.pth'):
        with contextlib.suppress(UserError):
            content = load_from_local(file, 'cpu')
            if 'optimizer' in content:  # the best ones have none
                whole.append((content['meta']['iter'], str(file)))
    if not whole:
        return None
    iteration, path = max(whole)
    _say(f'the whole checkpoint that got furthest is {path}, with {iteration} iterations')
    return path


def _say(message: str) -> None:
    if int(os.environ.get('RANK', 0)) == 0:  # there is no runner yet that knows
        print_log(message)
