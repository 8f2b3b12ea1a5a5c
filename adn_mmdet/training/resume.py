"""Which checkpoint a training goes on from, read once for all ranks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from ..errors import UserError
from ..ranks import once
from .resumed_settings import require_same_kind

PARTS = {'meta': dict, 'state_dict': dict, 'message_hub': dict, 'optimizer': dict}
LONGEST_PATH = 4096  # bytes


class Found(NamedTuple):
    """A whole checkpoint of a training."""

    path: str
    content: dict[str, Any]

    @property
    def iteration(self) -> int:
        """How many are done."""
        return self.content['meta']['iter']


def resume(cfg: Config, checkpoint: str) -> Found | None:
    """Let a config go on from a checkpoint; its random seed comes with it, as the order of the images hangs on that.

    Rank 0 alone reads the file, other machines need not have it.

    Args:
        cfg: a config, changed in place.
        checkpoint: a file, or ``auto`` for the latest in the work folder; where there is none, the training is new.

    Returns:
        The checkpoint; None for a new training.

    Raises:
        UserError: the file is missing, cut off or damaged, has no more than weights, is of another kind of training, or
            has more iterations than the config asks for.
    """
    found = once(lambda: _find(cfg, checkpoint))
    cfg.resume = found is not None
    if found:
        cfg.load_from = None  # what the first training started from need not be there any more
        if cfg.get('randomness', {}).get('seed') is None:
            cfg.merge_from_dict({'randomness.seed': found.content['meta'].get('seed')})
    return found


def _find(cfg: Config, checkpoint: str) -> Found | None:
    found = find_checkpoint(cfg.work_dir) if checkpoint == 'auto' else _read(checkpoint)
    if found:
        meta = found.content['meta']
        meta.pop('config', None)  # mmengine would run it, if it were there; what it saves is `cfg`
        require_same_kind(meta.get('cfg'), cfg, found.path)
        _require_something_to_do(found, cfg.train_cfg)
    return found


def find_checkpoint(work_dir: str | os.PathLike[str]) -> Found | None:
    """The file that ``last_checkpoint`` names, or else the whole one that got furthest.

    Returns:
        It and its content; None where the folder has no whole checkpoint of a training.
    """
    folder = Path(work_dir)
    if os.path.lexists(folder / 'last_checkpoint'):
        try:
            return _read(_named_by(folder / 'last_checkpoint'))
        except UserError as error:
            print_log(f'last_checkpoint does not help: {error}')
    best: Found | None = None
    for path in sorted(folder.glob('*.pth')):
        with contextlib.suppress(UserError):  # broken, of something else, or the best one, which has weights alone
            found = _read(str(path))
            best = found if best is None or found.iteration > best.iteration else best
    if best is None:
        print_log(f'{work_dir} has no checkpoint to resume: a new training starts')
    else:
        print_log(f'the whole checkpoint that got furthest is {best.path}, with {best.iteration} iterations')
    return best


def _named_by(pointer: Path) -> str:
    """The file that ``last_checkpoint`` names; one of that name beside it, as the folder may have been moved or copied.

    Raises:
        UserError: it names none.
    """
    try:
        with open(pointer, 'rb') as file:
            name = file.read(LONGEST_PATH + 1).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{pointer} cannot be read as text ({error})') from error
    if not name or len(name) > LONGEST_PATH or not name.isprintable():
        raise UserError(f'{pointer} holds no name of a file')
    here = pointer.parent / os.path.basename(name)
    if here.is_file():
        return str(here)
    print_log(f'last_checkpoint names {name}, which is in another folder')
    return name


def _read(path: str) -> Found:
    """Read a checkpoint, and make sure that it is a training's.

    Raises:
        UserError: it cannot be read, or is not.
    """
    content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    if 'optimizer' not in content or 'message_hub' not in content:
        raise UserError(f'{path} has weights alone, no training to resume: start from them with load_from={path}')
    wrong = [name for name, kind in PARTS.items() if not isinstance(content.get(name), kind)]
    counts = {} if wrong else {name: content['meta'].get(name) for name in ('iter', 'epoch')}
    wrong += [f'meta.{name}' for name, count in counts.items() if type(count) is not int or count < 0]
    if not wrong:
        runtime_info = content['message_hub'].get('runtime_info')
        logged = runtime_info.get('iter') if isinstance(runtime_info, dict) else None  # the one that was running
        if type(logged) is int and abs(counts['iter'] - logged) > 1:
            wrong.append(f'meta.iter ({counts["iter"]}, while the log has {logged})')
    if wrong:
        raise UserError(f'{path} is damaged: {", ".join(wrong)} cannot be; go on from an earlier checkpoint')
    return Found(path, content)


def _require_something_to_do(found: Found, train_cfg: dict[str, Any]) -> None:
    """Refuse to do nothing; a training that is just complete may be asked for again."""
    unit, name = ('iter', 'max_iters') if train_cfg.get('max_iters') is not None else ('epoch', 'max_epochs')
    done, total = found.content['meta'][unit], train_cfg.get(name)
    if total is None:
        return
    if done > total:
        raise UserError(
            f'{found.path} has {unit} {done}, beyond train_cfg.{name}={total}: nothing would be trained; '
            f'set --cfg-options train_cfg.{name} to more than {done}, or resume an earlier checkpoint'
        )
    if done == total:
        print_log(f'{found.path} is complete; to train longer, set train_cfg.{name} to more than {done}')
