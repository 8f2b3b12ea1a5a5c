"""PreemptionHook: a process that is told to go saves the training first."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..ranks import any_rank
from .checkpoint_hook import AtomicCheckpointHook

PREEMPTED = 75  # the exit code; EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name))  # Windows has one
FILENAME = 'preempted.pth'


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM or SIGUSR1, finish the iteration, save ``preempted.pth`` and exit with code :data:`PREEMPTED`.

    ``--resume`` goes on from there, with :class:`ExactResumeHook` also in the middle of an epoch. One rank that is told
    is enough: all of them stop after the same iteration. With accumulated gradients that is one that uses them up. In a
    validation the process goes at once where the iteration is saved already, and at its end otherwise.
    """

    priority = 'LOWEST'  # when all others are through with the iteration

    def __init__(self) -> None:
        self.received: str | None = None
        self.handlers: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen. Python lets only its main thread do so."""
        self.checkpoints = next((hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)), None)
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Go, where any rank was told to."""
        if _gradients_are_used_up(runner.optim_wrapper) and any_rank(self.received is not None):
            self._go(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Go at once where that loses nothing; ranks need not agree on it, and could not."""
        if self.received and self.checkpoints and self.checkpoints.saved_iter == runner.iter:
            self._go(runner, runner.iter)

    def after_val(self, runner: Runner) -> None:
        """Go, where any rank was told to."""
        if self.handlers and any_rank(self.received is not None):
            self._go(runner, runner.iter)

    def _go(self, runner: Runner, iteration: int) -> None:
        if self.checkpoints and self.checkpoints.saved_iter != iteration:
            self.checkpoints.save_as(runner, FILENAME, dict(epoch=runner.epoch, iter=iteration))
            barrier()  # launchers end all ranks when the first is gone: not before it is written
        saved = f'{self.checkpoints.last_ckpt}, go on with --resume' if self.checkpoints else 'nowhere'
        told = self.received or 'a signal to another rank'
        runner.logger.warning(f'{told}: stopping after iteration {iteration}, saved in {saved}')
        raise SystemExit(PREEMPTED)

    def restore_handlers(self, runner: Runner) -> None:
        """Leave the process as it was; :func:`~adn_mmdet.training.train` calls it after exceptions too."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self.handlers = {}

    after_train = restore_handlers


def _gradients_are_used_up(wrapper: OptimWrapper) -> bool:
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return all(one.should_update() for one in wrappers)


def shield_workers(loader: DataLoader) -> DataLoader:
    """Let the workers of a data loader outlive the signals, which schedulers send to a whole process group."""
    if hasattr(signal, 'sigwaitinfo'):  # Linux
        loader.worker_init_fn = functools.partial(_heed_parent_alone, loader.worker_init_fn)
    return loader


def _heed_parent_alone(then: Callable[[int], None] | None, worker_id: int) -> None:
    """To exit at the parent's SIGTERM is torch's own rule; it also lets workers die of everyone else's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def listen() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    if then:
        then(worker_id)
