"""torchrun with its processes' own exit code, and which lets them save for as long as that takes.

torchrun itself exits with 1 whatever its processes exit with, and kills what a SIGTERM has not ended in 30 s. Here
SIGTERM and SIGUSR1 are passed on to the processes, which alone end the run; other signals are torchrun's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import psutil
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


def main(argv: Sequence[str]) -> int:
    """Run a command line of torchrun.

    Returns:
        The exit code of the process that failed first; 75 (``os.EX_TEMPFAIL``) where any has it, or where the run was
        told to go before it could save anything; as a shell's for a process that a signal ended, or for Ctrl-C.
    """
    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        processes = psutil.Process().children()
        if not processes:  # still waiting for other machines
            raise SystemExit(os.EX_TEMPFAIL)
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    try:
        run.run(run.parse_args(['--signals-to-handle=SIGINT,SIGHUP,SIGQUIT', *argv]))
    except ChildFailedError as error:
        return _exit_code(list(error.failures.values()), told)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _exit_code(failures: list[ProcessFailure], told: list[int]) -> int:
    first = min(failures, key=lambda failure: failure.timestamp).exitcode
    if -first in told or any(failure.exitcode == os.EX_TEMPFAIL for failure in failures):
        return os.EX_TEMPFAIL
    return first if first > 0 else 128 - first


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
