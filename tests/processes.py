"""Functions in processes of their own, as ranks or alone."""

import multiprocessing
import os

import torch.distributed as dist

from adn_mmdet.ranks import leave_ranks

# Not forked from here: another test's torch.compile leaves threads behind, with which no fork can train.
PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload(['adn_mmdet'])


def _run_rank(function, rank, folder, arguments, queue):
    os.environ['LOCAL_RANK'] = '0'  # of a machine of its own, as far as that tells
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    try:
        queue.put((rank, outcome(function, rank, folder, *arguments)))
    finally:
        leave_ranks()


def two_ranks(function, folder, *arguments):
    """What ``function(rank, folder, …)`` returns on each of two ranks."""
    queue = PROCESSES.Queue()
    processes = [
        PROCESSES.Process(target=_run_rank, args=(function, rank, folder, arguments, queue), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return [results[rank] for rank in range(2)]


def outcome(function, *arguments):
    """What a function returns, or the error with which it ends."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        return error
