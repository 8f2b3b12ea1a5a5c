"""AtomicCheckpointHook: a kill at any moment of a save leaves a whole checkpoint, which ``--resume`` finds."""

from __future__ import annotations

import os
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from ..files import left_partials, write_atomically


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


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with its arguments, in another order: write beside, move into place, then delete.

    mmengine's own deletes the oldest and the previous best checkpoint first, and overwrites ``last_checkpoint`` in
    place. Before each save of a training's whole state the hooks' ``gather_states(runner)`` is called on every rank, as
    mmengine's ``before_save_checkpoint`` is on the first rank only. Other storage than local files (``backend_args``,
    ``s3://…``) is left to mmengine.
    """

    saved_iter = -1  # iterations that the newest checkpoint holds
    file_backend: Any = None  # only a training has one
    best_ckpt_path: str | None
    best_ckpt_path_dict: dict[str, str | None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.filename_tmpl.format(0) == self.filename_tmpl.format(1):
            self.max_keep_ckpts = -1  # one file that is overwritten: nothing is ever outdated

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder; what a killed save has left there is removed."""
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend='atomic')
            if is_main_process():
                for path in left_partials(self.out_dir, '*.pth*'):
                    path.unlink()

    def save_as(self, runner: Runner, filename: str, meta: dict[str, Any]) -> None:
        """Save the whole state of the training, and let ``last_checkpoint`` name it.

        Args:
            runner: the runner.
            filename: without folder.
            meta: epochs (``epoch``) and iterations (``iter``) that are done.

        Raises:
            UserError: the file cannot be written.
        """
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.call_hook('gather_states')
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self.saved_iter = meta['iter']
        if is_main_process():
            AtomicBackend().put_text(self.last_ckpt, os.path.join(runner.work_dir, 'last_checkpoint'))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.save_as(runner, self.filename_tmpl.format(step), meta)
        if outdated:
            self._remove(outdated)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best or self.file_backend is None:  # a validation without a training has nothing to save
            return
        before = self._take_best()  # mmengine deletes, before it writes, what it knows
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            outdated = self._restore_best(before)
        for path in outdated:
            self._remove(os.path.basename(path))  # in this folder: a copied one still names files of the original

    def _take_best(self) -> dict[str, str | None]:
        """Forget the paths of the best checkpoints, by key."""
        if len(self.key_indicators) == 1:
            path, self.best_ckpt_path = self.best_ckpt_path, None
            return {self.key_indicators[0]: path}
        before = dict(self.best_ckpt_path_dict)
        self.best_ckpt_path_dict = dict.fromkeys(before)
        return before

    def _restore_best(self, before: dict[str, str | None]) -> set[str]:
        """Remember those that have no successor.

        Returns:
            Those that have one, in a file of another name.
        """
        if len(self.key_indicators) == 1:
            (path,) = before.values()
            self.best_ckpt_path = self.best_ckpt_path or path
            kept = [self.best_ckpt_path]
        else:
            self.best_ckpt_path_dict = {key: self.best_ckpt_path_dict.get(key) or path for key, path in before.items()}
            kept = list(self.best_ckpt_path_dict.values())
        names = {os.path.basename(path) for path in kept if path}
        return {path for path in before.values() if path and os.path.basename(path) not in names}

    def _remove(self, filename: str) -> None:
        path = self.file_backend.join_path(self.out_dir, filename)
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
