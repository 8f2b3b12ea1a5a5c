"""What the processes (ranks) of a distributed run start together, agree on, and do once for all."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import all_reduce, get_rank, get_world_size, init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing

from .errors import UserError

Result = TypeVar('Result')

PATIENCE = timedelta(days=1)  # how long ranks wait for what one of them reads or checks
STARTED_BY = {  # launcher: what sets which variable
    'pytorch': ('tools/dist_train.sh, tools/dist_test.sh or torchrun', 'RANK'),
    'slurm': ('srun', 'SLURM_PROCID'),
    'mpi': ('mpirun', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def join_ranks(cfg: Config) -> None:
    """Start the process group of a config's launcher, and let the config suit it.

    What a run does before it builds a Runner needs the group already; the Runner then finds it. Metrics of several
    machines send each other their results, where mmengine writes them to a folder that all are to share.

    Raises:
        UserError: this process was not started by that launcher.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    if not is_distributed():
        _start_group(cfg)
    if get_world_size() > 1 and len(set(_with_group(_leaders))) > 1:
        for evaluator in (cfg.get('val_evaluator'), cfg.get('test_evaluator')):
            for metric in evaluator if isinstance(evaluator, list) else [evaluator] if evaluator else []:
                metric.setdefault('collect_device', 'gpu')  # which means by the process group, of the CPU as well


def _start_group(cfg: Config) -> None:
    """As mmengine's ``Runner.setup_env`` does: first what processes are to be, then the group.

    Where torch sees no GPU, which mmengine takes for granted, gloo joins the ranks, and the config is changed to suit.
    """
    starter, variable = STARTED_BY[cfg.launcher]
    if variable not in os.environ:
        raise UserError(
            f'--launcher {cfg.launcher}: {variable} is not set, which {starter} does: start this with {starter}'
        )
    environment = cfg.get('env_cfg', {})
    set_multi_processing(**environment.get('mp_cfg', {}), distributed=True)
    if cfg.launcher == 'mpi':
        os.environ['LOCAL_RANK'] = os.environ[variable]
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        dist.init_process_group('gloo')
        unused = cfg.get('find_unused_parameters', False)
        cfg.model_wrapper_cfg = dict(device_ids=None, broadcast_buffers=False, find_unused_parameters=unused)
        cfg.sync_bn = None  # torch synchronises statistics of GPU tensors only
    else:
        init_dist(cfg.launcher, **environment.get('dist_cfg', {}))


def leave_ranks() -> None:
    """End the process group, if there is one: gloo's threads may abort a process that just ends."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def any_rank(flag: bool) -> bool:
    """Whether a flag is set on any rank. All of them must ask at the same point."""
    flags = torch.tensor(int(flag))
    all_reduce(flags, op='max')
    return bool(flags)


def once(work: Callable[[], Result], a_machine: bool = False) -> Result:
    """The result of a function that rank 0 alone runs; all ranks must call this at the same point.

    The others wait for it on the CPU, where nothing times out as in NCCL. Machines need not share their files: what
    reads or writes those runs once a machine, or its result is all that the others need.

    Args:
        work: the function; its result can be pickled.
        a_machine: the first rank of each machine runs it, for those of that machine.

    Raises:
        BaseException: what the function raised on this rank.
        SystemExit: with code 2 where it failed on another one, which says why.
    """
    if get_world_size() == 1:
        return work()

    def together(group: dist.ProcessGroup) -> Result:
        return _once(work, _leaders(group) if a_machine else [0] * get_world_size(), group)

    return _with_group(together)


def _with_group(work: Callable[[dist.ProcessGroup], Result]) -> Result:
    """The result of a function of all ranks, as joined on the CPU for as long as it takes."""
    group = dist.new_group(backend='gloo', timeout=PATIENCE)
    try:
        return work(group)
    finally:
        dist.destroy_process_group(group)


def _leaders(group: dist.ProcessGroup) -> list[int]:
    """By rank: the first rank of its machine. Host names alone do not tell containers apart."""
    places = _gather((socket.gethostname(), int(os.environ.get('LOCAL_RANK', 0))), group)
    return [
        max((lead for lead in range(rank + 1) if places[lead] == (host, 0)), default=rank)
        for rank, (host, _) in enumerate(places)
    ]


def _once(work: Callable[[], Result], leaders: list[int], group: dist.ProcessGroup) -> Result:
    mine = leaders[get_rank()]
    result: Result | None = None
    error: BaseException | None = None
    if mine == get_rank():
        try:
            result = work()
        except BaseException as raised:
            error = raised
    failed = any(_gather(error is not None, group))
    if error:
        raise error
    if failed:
        raise SystemExit(2)
    answers = {}
    for leader in sorted(set(leaders)):
        dist.broadcast_object_list(answer := [result], src=leader, group=group)
        answers[leader] = answer[0]
    return answers[mine]  # type: ignore[return-value]


def _gather(value: Any, group: dist.ProcessGroup) -> list[Any]:
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values
