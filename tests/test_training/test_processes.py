"""Two ranks, and workers: what needs more than one process."""

import multiprocessing
import os
import re
import shutil
import signal
import socket
import time

import psutil
import pytest
from processes import PROCESSES, outcome, two_ranks
from test_training.toy import NUM_IMAGES, at, same_training, sigterm, toy_config, toy_train

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training import PREEMPTED, lock


def on_rank(wanted, action):
    return lambda runner, data_batch: action(runner, data_batch) if runner.rank == wanted else None


def two_rank_config(work_dir, **options):
    cfg = toy_config(work_dir, **options)
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    cfg.randomness = dict(seed=0, diff_rank_seed=True)
    return cfg


def run(work_dir, iteration=None, action=None, rank=None, resume=None):
    """How a run of two ranks ended: an exit code, or what is said."""
    hooks = [at(iteration, on_rank(rank, action))] if action else []
    end = outcome(train, two_rank_config(work_dir, hooks=hooks), resume)
    return end.code if isinstance(end, SystemExit) else str(end) if isinstance(end, Exception) else 0


def run_rank(rank, folder):
    def spoil(runner, data_batch):
        data_batch['inputs'][0].fill_(float('nan'))

    return [
        run(folder / 'straight'),
        run(folder / 'stopped', 3, sigterm, rank=1),
        run(folder / 'stopped', resume='auto'),
        run(folder / 'spoilt', 2, spoil, rank=1),
    ]


def test_ranks_stop_together_and_resume_exactly(tmp_path):
    ends = two_ranks(run_rank, tmp_path)
    assert ends[0] == ends[1] and ends[0][:3] == [0, PREEMPTED, 0]
    assert ends[0][3].startswith('iteration 2: loss = nan') and not any((tmp_path / 'spoilt').glob('*.pth'))
    straight, stopped = tmp_path / 'straight', tmp_path / 'stopped'
    assert load_from_local(stopped / 'preempted.pth', 'cpu')['meta']['iter'] == 3  # the epoch's last of three
    first, second = (load_from_local(folder / 'epoch_2.pth', 'cpu') for folder in (straight, stopped))
    assert same_training(first, second) and len(first['exact_resume']['random']) == 2
    toy_train(straight, str(straight / 'epoch_1.pth'))  # alone
    log = max(straight.glob('*/*.log')).read_text()
    assert '1 processes resume a checkpoint of 2: with 2 images each the total batch size is 2 instead of 4' in log


def stop_whole_group(runner, data_batch):
    os.killpg(os.getpgid(0), signal.SIGTERM)


def run_with_workers(folder):
    os.setpgid(0, 0)
    cfg = toy_config(folder, hooks=[at(3, stop_whole_group)])
    cfg.train_dataloader.num_workers = 2
    train(cfg)


def test_workers_outlive_a_signal_to_the_whole_group(tmp_path):
    process = PROCESSES.Process(target=run_with_workers, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == PREEMPTED
    toy_train(tmp_path, 'auto')
    assert load_from_local(tmp_path / 'epoch_2.pth', 'cpu')['meta']['iter'] == NUM_IMAGES


def run_machine(rank, folder):
    """A rank that sees nothing of the other's files: neither the checkpoint nor the lock."""
    own = folder / f'machine_{rank}'
    own.mkdir()
    os.chdir(own)
    if rank == 0:
        shutil.copytree(folder / 'before', own / 'run')
    return run('run', resume='auto'), sorted(os.listdir('run'))


def test_machines_need_not_share_the_work_folder(tmp_path):
    toy_train(tmp_path / 'before')
    (tmp_path / 'before' / 'epoch_2.pth').unlink()
    (end, files), (other_end, other_files) = two_ranks(run_machine, tmp_path)
    assert end == other_end == 0 and 'epoch_2.pth' in files
    assert not [name for name in other_files if name.endswith(('.pth', 'lock', 'last_checkpoint'))]
    checkpoint = load_from_local(tmp_path / 'machine_0' / 'run' / 'epoch_2.pth', 'cpu')
    assert checkpoint['meta']['iter'] == 6 + 3  # six iterations alone, three of two ranks


def run_locked(rank, folder):
    lock.SECONDS = 0.1
    return run(folder)


def test_one_training_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, 'SECONDS', 0.1)
    with lock.only_training_in(str(tmp_path)):
        message = (
            f'{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}: wait until that ends, or give'
        )
        with pytest.raises(UserError, match=message):
            toy_train(tmp_path)
        first, second = two_ranks(run_locked, tmp_path)
        assert re.match(message, first) and second == 2
    toy_train(tmp_path)


def wait_for_ever(folder):
    cfg = toy_config(folder, hooks=[at(3, lambda *_: time.sleep(600))])
    cfg.train_dataloader.num_workers = 2
    train(cfg)


def test_a_killed_owner_leaves_no_lock(tmp_path, monkeypatch):
    """Its workers hold it for some seconds, which the next training waits for."""
    process = PROCESSES.Process(target=wait_for_ever, args=(tmp_path,))
    process.start()
    while not any(tmp_path.glob('*/vis_data/scalars.json')):
        time.sleep(0.05)
    with monkeypatch.context() as patch:
        patch.setattr(lock, 'SECONDS', 0.1)
        with pytest.raises(UserError, match=f'in use by process {process.pid} on '):
            toy_train(tmp_path)
    process.kill()
    process.join()
    toy_train(tmp_path)


def run_interrupted(folder, queue):
    def interrupt(runner, data_batch):
        queue.put([child.pid for child in multiprocessing.active_children()])
        os.kill(os.getpid(), signal.SIGINT)

    cfg = toy_config(folder, hooks=[at(2, interrupt)])
    cfg.train_dataloader.num_workers = 2
    try:
        train(cfg)
    except KeyboardInterrupt:
        with lock.only_training_in(str(folder)):
            raise SystemExit(130) from None


def test_ctrl_c_passes_through_and_leaves_neither_a_lock_nor_workers(tmp_path):
    queue = PROCESSES.Queue()
    process = PROCESSES.Process(target=run_interrupted, args=(tmp_path, queue))
    process.start()
    workers = queue.get(timeout=60)
    process.join(60)
    assert process.exitcode == 130 and len(workers) == 2 and not any(map(psutil.pid_exists, workers))
