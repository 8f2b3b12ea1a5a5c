"""AtomicCheckpointHook: a kill at any moment of a save leaves a whole checkpoint, which ``--resume`` finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..files import PARTIAL
from .atomic_backend import AtomicBackend


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with its arguments, in another order: write beside, move into place, then delete.

    mmengine's own deletes the oldest and the previous best checkpoint first, and overwrites ``last_checkpoint`` in
    place. Before each save of a training's whole state the hooks' ``gather_states(runner)`` is called on every rank, as
    mmengine's ``before_save_checkpoint`` is on the first rank only. Other storage than local files (``backend_args``,
    ``s3://…``) is left to mmengine.
    """

    saved_iter = -1  # iterations that the newest checkpoint holds

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder; what a killed save has left there is removed."""
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend='atomic')
            if is_main_process():
                for path in Path(self.out_dir).glob(f'*{PARTIAL}'):
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
        outdated: list[str] = []
        self.file_backend.remove = outdated.append  # put off until the new ones are there
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del self.file_backend.remove
        for path in outdated:
            self._remove(os.path.basename(path))  # in this folder: a copied one still names files of the original

    def _remove(self, filename: str) -> None:
        path = self.file_backend.join_path(self.out_dir, filename)
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
