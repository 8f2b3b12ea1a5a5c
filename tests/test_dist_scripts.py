"""The scripts that start several processes: two ranks on the CPU."""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import DEMO_CONFIG
from tiny import ROOT, load_tool


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def shell(script, *arguments):
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'  # where torchrun is
    environment = os.environ | {'PATH': path, 'PORT': str(free_port()), 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        ['bash', str(ROOT / 'tools' / script), *map(str, arguments)], env=environment, capture_output=True, text=True
    )


def test_two_ranks_train_and_test_as_one(tiny_options, tmp_path):
    options = [*tiny_options, 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']
    trained = shell('dist_train.sh', DEMO_CONFIG, 2, '--work-dir', tmp_path, *options)
    assert trained.returncode == 0, trained.stderr[-2000:]
    checkpoint = str(tmp_path / 'iter_4.pth')
    tested = shell(
        'dist_test.sh', DEMO_CONFIG, checkpoint, 2, '--work-dir', tmp_path / 'two', '--skip', 'TTTT', *tiny_options
    )
    assert tested.returncode == 0, tested.stderr[-2000:]
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path / 'one'), '--skip', 'TTTT', *tiny_options]
    assert load_tool('test').main(argv) == 0
    one, two = (json.loads((tmp_path / name / 'sub_nets.json').read_text()) for name in ('one', 'two'))
    assert two == one and len(one['rows']) == 1


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_what_is_left_out_is_said(script):
    result = shell(script, 'config.py')
    assert result.returncode != 0 and f'usage: {script} CONFIG' in result.stderr
