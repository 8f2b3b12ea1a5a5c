"""SIGKILL at random moments of a training that does little but save. ``ADN_KILLS=50`` kills more often than CI does."""

import os
import random
import time

from processes import PROCESSES
from test_training.toy import toy_config

from adn_mmdet import train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training.resume import find_checkpoint

KILLS = int(os.environ.get('ADN_KILLS', 3))


def save_for_ever(work_dir):
    """A checkpoint of 16 MB an iteration, one kept."""
    cfg = toy_config(work_dir, by_epoch=False, weight=4, max_keep_ckpts=1)
    cfg.train_cfg.max_iters = 10**6
    cfg.default_hooks.checkpoint.interval = 1
    cfg.default_hooks.logger.interval = 10**6
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.log_level = 'ERROR'
    train(cfg, 'auto')


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    pointer, iterations, cut = tmp_path / 'last_checkpoint', 0, 0
    for kill in range(KILLS):
        before = pointer.read_text() if kill else None
        process = PROCESSES.Process(target=save_for_ever, args=(tmp_path,))
        process.start()
        while not pointer.exists() or pointer.read_text() == before:
            assert process.is_alive()
            time.sleep(0.01)
        while kill % 2 and not any(tmp_path.glob('*.partial')):  # every other time not before a write
            time.sleep(0)
        time.sleep(random.uniform(0, 0.02 if kill % 2 else 0.3))
        process.kill()
        process.join()
        cut += any(tmp_path.glob('*.partial'))
        assert find_checkpoint(tmp_path).path == pointer.read_text()  # no need of an older one
        done = load_from_local(pointer.read_text(), 'cpu')['meta']['iter']
        assert done > iterations, 'the training did not go on from where it was'
        iterations = done
    print(f'{KILLS} kills, {cut} in the middle of a write, {iterations} checkpoints written')
