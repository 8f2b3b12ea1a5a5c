"""ExactResumeHook: a resumed training does, to the bit, what the uninterrupted one would have done."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

State = dict[str, Any]


def get_random_state() -> State:
    """The states of all random number generators of this process, in types that ``weights_only`` loads."""
    of_numpy = np.random.get_state(legacy=False)
    of_numpy['state']['key'] = of_numpy['state']['key'].tolist()
    state = dict(python=random.getstate(), numpy=of_numpy, torch=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: State) -> None:
    """Undo whatever was drawn since :func:`get_random_state`."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Keep in every checkpoint what mmengine does not: random states of all ranks, and the place within an epoch.

    Exact to the bit on the CPU with ``num_workers=0``, epoch-based and iteration-based, also for a checkpoint out of
    the middle of an epoch: the batches that this epoch has had are loaded again and passed over, as mmengine does in
    iteration-based trainings. With ``num_workers > 0`` the order of the images is as exact, what workers draw only from
    one epoch to the next without ``persistent_workers``, as they are seeded anew when they start. A GPU's arithmetic is
    exact with ``randomness.deterministic`` at most. Validation leaves no trace in the random states. Where the number
    of processes or of batches is another one, an interrupted epoch starts anew.
    """

    priority = 'LOW'  # behind what draws numbers, swaps weights or steps the schedules, before CheckpointHook

    def __init__(self) -> None:
        self.batches_done = 0  # in the running epoch
        self.of_ranks: list[State] = []  # to be saved
        self.before_validation: State = {}
        self.resumed: State = {}

    def gather_states(self, runner: Runner) -> None:
        """AtomicCheckpointHook is about to save."""
        self.of_ranks = all_gather_object(get_random_state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add ``exact_resume``: random states by rank, batches done in the running epoch, batches that it has."""
        if self.of_ranks:  # not for the best checkpoint, which nothing resumes from
            done = self.batches_done
            checkpoint['exact_resume'] = dict(
                random=self.of_ranks, done=done, batches=len(runner.train_dataloader) if done else 0
            )
            self.of_ranks = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the state of this rank."""
        saved = checkpoint.get('exact_resume')
        if not saved or not runner._resume:
            return
        before, now = len(saved['random']), runner.world_size
        if before == now:
            self.resumed = dict(saved, random=saved['random'][runner.rank])
            mine = get_random_state()
            set_random_state(self.resumed['random'])  # fails here, if it does, and not in the middle of the training
            set_random_state(mine)
        else:
            size = runner.train_dataloader.batch_sampler.batch_size
            runner.logger.warning(
                f'{now} processes resume a checkpoint of {before}: with {size} images each the total batch size is '
                f'{size * now} instead of {size * before}, so that an iteration (of schedules, intervals, max_iters) '
                'means other amounts of data; the learning rate stays as it was saved, random states start anew, '
                'and so does an interrupted epoch'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Go on from the saved state: now, or when the batches that are passed over have been loaded."""
        saved, self.resumed = self.resumed, {}
        if not saved:
            return
        loop, restore = runner.train_loop, lambda: set_random_state(saved['random'])
        restore()
        if isinstance(loop, IterBasedTrainLoop):
            batches = loop.dataloader_iterator
            is_complete = loop.iter >= loop.max_iters  # and needs no batches to be passed over
            loop.dataloader_iterator = (
                itertools.repeat(None) if is_complete else _act_after(loop.iter, batches, restore)
            )
        elif isinstance(loop, EpochBasedTrainLoop) and saved['done']:
            if saved['batches'] == len(loop.dataloader):
                runner.logger.info(f'passing over {saved["done"]} batches that this epoch has had')
                _pass_over(saved['done'], loop, restore)
            else:
                runner.logger.warning(
                    f'the epoch that was interrupted after {saved["done"]} of {saved["batches"]} batches starts anew: '
                    f'it has {len(loop.dataloader)} now'
                )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches_done = batch_idx + 1

    def after_train_epoch(self, runner: Runner) -> None:
        """The next epoch starts with its first batch."""
        self.batches_done = 0

    def before_val(self, runner: Runner) -> None:
        """Validation draws numbers: even a data loader's start does."""
        self.before_validation = get_random_state()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore, before CheckpointHook saves the best."""
        set_random_state(self.before_validation)


def _act_after(count: int, batches: Iterator[Any], action: Callable[[], None]) -> Iterator[Any]:
    yield from itertools.islice(batches, count)
    action()
    yield from batches


def _pass_over(count: int, loop: EpochBasedTrainLoop, action: Callable[[], None]) -> None:
    """Let the loop's next ``count`` iterations do nothing, the last of them ``action``.

    ``run_iter`` is replaced, on this one loop: it enumerates its data loader itself, so that batches taken from that
    would shift the number of every batch that hooks are told.
    """

    def run_iter(idx: int, data_batch: Any) -> None:
        if idx + 1 == count:
            action()
            del loop.run_iter

    loop.run_iter = run_iter
