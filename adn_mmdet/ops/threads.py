"""Operators that use one thread of the CPU, split over as many as torch uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

# Smaller results take less time than it takes to wake the threads.
WORTHWHILE = 2**16
CHUNKS_A_THREAD = 4  # boxes differ in size, and threads in how much of a core they get


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix='adn_mmdet.ops')


if hasattr(os, 'register_at_fork'):  # a forked process has the pool, but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def fill(output: Tensor, part: Callable[[Tensor], Tensor], source: Tensor, dim: int) -> None:
    """Fill ``output`` with what an operator makes of ``source``, where its slices along a dimension are independent.

    Args:
        output: what is filled; its slices along ``dim`` are those of ``source``, which on the CPU are computed by
            several threads unless there are few.
        part: the operator, on some or all slices of ``source``; it releases Python's lock.
        source: the tensor that is split.
        dim: along which dimension.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not output.is_cpu or output.numel() < WORTHWHILE:
        output.copy_(part(source))
        return
    parts = _pool(threads).map(torch.no_grad()(part), source.chunk(threads * CHUNKS_A_THREAD, dim))
    torch.cat(list(parts), dim, out=output)
