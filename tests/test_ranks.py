"""Ranks that do one thing for all, and start as mmengine's do."""

import copy
import importlib
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import DEMO_CONFIG
from mmengine.config import Config
from mmengine.registry import init_default_scope
from processes import outcome, two_ranks
from tiny import load_tool

from adn_mmdet import UserError, ranks
from adn_mmdet.datasets.preparation import prepare_data
from adn_mmdet.ranks import join_ranks, once
from adn_mmdet.skip_config import SkipConfig


def refuse(message):
    raise UserError(message)


def do_once(rank, folder):
    return [
        once(lambda: ('by', rank)),
        once(lambda: ('by', rank), a_machine=True),
        outcome(once, lambda: refuse('no')),
        outcome(once, lambda: rank or refuse('not on the first machine'), True),
        once(lambda: SkipConfig.parse('TF')),
    ]


def test_one_rank_works_for_all_or_one_a_machine(tmp_path):
    first, second = two_ranks(do_once, tmp_path)
    assert first[:2] == [('by', 0), ('by', 0)] and second[:2] == [('by', 0), ('by', 1)]
    assert [str(error) for error in (*first[2:4], *second[2:4])] == ['no', 'not on the first machine', '2', '2']
    assert [type(error) for error in (first[2], second[2])] == [UserError, SystemExit]
    assert first[4] == second[4] == SkipConfig.parse('TF')


@pytest.mark.parametrize(
    'places, leaders',
    [
        ([('a', 0), ('a', 1), ('b', 0), ('b', 1)], [0, 0, 2, 2]),
        ([('a', 0), ('b', 0), ('a', 1), ('b', 1)], [0, 1, 0, 1]),
        ([('localhost', 0), ('localhost', 1), ('localhost', 0), ('localhost', 1)], [0, 0, 2, 2]),
        ([('a', 1), ('a', 0)], [0, 1]),
    ],
    ids=['blocks', 'cyclic', 'one name', 'odd'],
)
def test_the_first_rank_of_each_machine_leads(monkeypatch, places, leaders):
    monkeypatch.setattr(ranks, '_gather', lambda value, group: places)
    assert ranks._leaders(None) == leaders


def prepare(rank, folder, shapes):
    """Data and work folder that this rank alone sees."""
    own = folder / f'machine_{rank}'
    (own / 'annotations').mkdir(parents=True)
    os.chdir(own)
    content = json.loads(Path(shapes, 'annotations/instances_train.json').read_text())
    content['annotations'][0]['segmentation'] = []
    Path('annotations/instances_train.json').write_text(json.dumps(content))
    os.symlink(f'{shapes}/train', 'train')
    cfg = Config.fromfile(DEMO_CONFIG)
    init_default_scope('mmdet')
    cfg.work_dir, cfg.train_dataloader.dataset.data_root = 'run', ''
    broken = copy.deepcopy(cfg)
    prepare_data(cfg, 'train')
    if rank == 1:
        Path('annotations/instances_train.json').unlink()
    return cfg.train_dataloader.dataset.ann_file, outcome(prepare_data, broken, 'train')


def test_machines_need_not_share_data_or_work_folder(shapes, tmp_path):
    (first, end), (second, error) = two_ranks(prepare, tmp_path, str(shapes))
    assert Path(first).is_relative_to(tmp_path / 'machine_0') and Path(first).is_file()
    assert Path(second).is_relative_to(tmp_path / 'machine_1') and Path(second).is_file()
    assert isinstance(end, SystemExit) and isinstance(error, UserError) and 'no annotation file' in str(error)


def test_processes_are_set_up_before_they_are_joined(monkeypatch):
    """As mmengine does it, and so that its own set-up, later, finds nothing to change or to warn of."""
    seen = []
    monkeypatch.setattr(
        dist,
        'init_process_group',
        lambda backend: seen.append(
            (backend, torch.multiprocessing.get_start_method(True), os.environ['OMP_NUM_THREADS'])
        ),
    )
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setenv('MKL_NUM_THREADS', '1')
    monkeypatch.setenv('RANK', '0')
    cfg = Config(dict(launcher='pytorch', sync_bn='torch', env_cfg=dict(mp_cfg=dict(mp_start_method='fork'))))
    torch.multiprocessing.set_start_method(None, force=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        join_ranks(cfg)
    assert seen == [('gloo', 'fork', '1')] and cfg.model_wrapper_cfg.device_ids is None and cfg.sync_bn is None
    assert not [warning for warning in caught if 'start method' in str(warning.message)]


@pytest.mark.parametrize('launcher, starter', [('pytorch', 'torchrun'), ('slurm', 'srun'), ('mpi', 'mpirun')])
def test_a_launcher_that_did_not_start_this(monkeypatch, launcher, starter):
    for _, variable in ranks.STARTED_BY.values():
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=f'--launcher {launcher}: .* is not set, .*{starter}'):
        join_ranks(Config(dict(launcher=launcher)))


@pytest.mark.parametrize('end', [UserError('no'), RuntimeError('no'), SystemExit(75), KeyboardInterrupt(), None])
def test_scripts_leave_the_group_however_they_end(end):
    def main(argv):
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
        if end:
            raise end

    load_tool('train')  # puts tools/ on the path
    outcome(importlib.import_module('_command').command(main))
    assert not dist.is_initialized()
