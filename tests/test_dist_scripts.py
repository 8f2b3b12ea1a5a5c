"""The scripts that start several processes: two ranks on the CPU."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import DEMO_CONFIG
from tiny import ROOT, load_tool

from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training import PREEMPTED


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def command(script, *arguments):
    """A command line and its environment."""
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'  # where python is
    environment = os.environ | {'PATH': path, 'PORT': str(free_port()), 'OMP_NUM_THREADS': '1'}
    runner = 'bash' if script.endswith('.sh') else 'python'
    return dict(args=[runner, str(ROOT / 'tools' / script), *map(str, arguments)], env=environment, text=True)


def shell(script, *arguments):
    return subprocess.run(**command(script, *arguments), capture_output=True)


def test_two_ranks_test_as_one(trained, tiny_options, tmp_path):
    """Two processes that were started one by one, each the first of its machine and in a folder of its own."""
    points = ['--skip', 'FFFF,TTFF', '--sizes', '64,32', '--proposals', '20,5']
    arguments = [DEMO_CONFIG, str(trained / 'iter_4.pth'), *points, '--work-dir', 'run', '--out', 'found.pkl']
    where = {'LOCAL_RANK': '0', 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    line = command('test.py', *arguments, '--launcher', 'pytorch', *tiny_options)
    processes = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        line['env'] |= where | {'RANK': str(rank)}
        processes.append(subprocess.Popen(**line, cwd=tmp_path / str(rank), stderr=subprocess.PIPE))
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert not (tmp_path / '1' / 'run' / 'sub_nets.json').exists()
    (tmp_path / 'one').mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / 'one')
        assert load_tool('test').main([*arguments, *tiny_options]) == 0
    folders = [tmp_path / '0', tmp_path / 'one']
    rows = [json.loads((folder / 'run' / 'sub_nets.json').read_text()) for folder in folders]
    assert rows[0] == rows[1] and len(rows[0]['rows']) == 8
    found = [pickle.loads((folder / 'found_TTFF@32-5.pkl').read_bytes()) for folder in folders]
    for images in zip(*found, strict=True):  # AP alone would be near 0 after four iterations
        boxes, others = (image['pred_instances']['bboxes'] for image in images)
        assert len(boxes) and torch.equal(boxes, others)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_what_is_left_out_is_said(script):
    result = shell(script, 'config.py')
    assert result.returncode != 0 and f'usage: {script} CONFIG' in result.stderr


def wait_for(found, process, seconds=120):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1][-2000:]
        time.sleep(0.1)


def test_a_signal_to_the_script_saves_and_exits_with_75(tiny_options, tmp_path):
    """The scheduler sees the shell script alone, and tells no other process."""
    options = [*tiny_options, 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None', 'train_cfg.max_iters=99999']
    line = command('dist_train.sh', DEMO_CONFIG, 2, '--work-dir', tmp_path, *options)
    process = subprocess.Popen(**line, stderr=subprocess.PIPE)
    wait_for((tmp_path / 'iter_2.pth').exists, process)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == PREEMPTED, error[-2000:]
    saved = load_from_local((tmp_path / 'last_checkpoint').read_text(), 'cpu')
    assert saved['meta']['iter'] >= 2 and len(saved['exact_resume']['random']) == 2
    assert 'Traceback' not in error


RANK = """
import os, sys, time
rank, folder, how = int(os.environ['RANK']), *sys.argv[1:3]
open(f'{folder}/{rank}', 'w').close()
time.sleep(60 if how == 'waits' else 2 * rank)
sys.exit(int(sys.argv[3 + rank]))
"""


@pytest.fixture
def two(tmp_path):
    """Starts two ranks that do as they are told."""
    (tmp_path / 'rank.py').write_text(RANK)
    line = ['--nproc-per-node', 2, '--master-port', free_port(), tmp_path / 'rank.py', tmp_path]
    return lambda *how: subprocess.Popen(**command('_torchrun.py', *line, *how), stderr=subprocess.PIPE)


def test_the_launcher_ends_as_its_processes(two):
    process = two('ends', 2, 0)
    assert process.wait(60) == 2 and 'Traceback' not in process.communicate()[1]


@pytest.mark.parametrize('told, end', [('SIGUSR1', PREEMPTED), ('SIGINT', 130)])
def test_signals_to_the_launcher_reach_its_processes(two, tmp_path, told, end):
    """Those that do not know what to do yet have nothing to save either."""
    process = two('waits')
    wait_for(lambda: (tmp_path / '0').exists() and (tmp_path / '1').exists(), process)
    process.send_signal(signal.Signals[told])
    assert process.wait(60) == end
