"""Two ranks, and workers: what needs more than one process."""

import multiprocessing
import os
import signal

import torch.distributed as dist
from test_training.toy import NUM_IMAGES, at, same_training, sigterm, toy_config, toy_train

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training import PREEMPTED

# Not forked from here: another test's torch.compile leaves threads behind, with which no fork can train.
PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload(['adn_mmdet'])


def on_rank(wanted, action):
    return lambda runner, data_batch: action(runner, data_batch) if runner.rank == wanted else None


def run(work_dir, iteration=None, action=None, rank=None, resume=None):
    """How a run of two ranks ended."""
    cfg = toy_config(work_dir, hooks=[at(iteration, on_rank(rank, action))] if action else [])
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    cfg.randomness = dict(seed=0, diff_rank_seed=True)
    try:
        train(cfg, resume)
    except SystemExit as error:
        return error.code
    except UserError as error:
        return str(error)
    return 0


def run_rank(rank, folder, queue):
    os.environ['LOCAL_RANK'] = '0'
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    ends = [run(folder / 'straight'), run(folder / 'stopped', 3, sigterm, rank=1)]
    ends.append(run(folder / 'stopped', resume='auto'))

    def spoil(runner, data_batch):
        data_batch['inputs'][0].fill_(float('nan'))

    ends.append(run(folder / 'spoilt', 2, spoil, rank=1))
    queue.put((rank, ends))
    dist.destroy_process_group()


def test_ranks_stop_together_and_resume_exactly(tmp_path):
    queue = PROCESSES.Queue()
    ranks = [PROCESSES.Process(target=run_rank, args=(rank, tmp_path, queue), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    ends = dict(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
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
