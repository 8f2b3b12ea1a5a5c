"""The scripts that start several processes: two ranks on the CPU."""

import json
import os
import pickle
import socket
import subprocess
import sys

import pytest
import torch
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
    arguments = [DEMO_CONFIG, str(tmp_path / 'iter_4.pth'), '--skip', 'FFFF,TTFF,TTTT', *tiny_options]
    one, two = ([f'--work-dir={tmp_path / name}', f'--out={tmp_path / name}.pkl'] for name in ('one', 'two'))
    tested = shell('dist_test.sh', *arguments[:2], 2, *two, *arguments[2:])
    assert tested.returncode == 0, tested.stderr[-2000:]
    assert load_tool('test').main([*arguments[:2], *one, *arguments[2:]]) == 0
    rows = [json.loads((tmp_path / name / 'sub_nets.json').read_text()) for name in ('one', 'two')]
    assert rows[0] == rows[1] and len(rows[0]['rows']) == 3
    found = [pickle.loads((tmp_path / f'{name}_TTFF.pkl').read_bytes()) for name in ('one', 'two')]
    for images in zip(*found, strict=True):  # AP alone would be near 0 after four iterations
        boxes, others = (image['pred_instances']['bboxes'] for image in images)
        assert len(boxes) and torch.equal(boxes, others)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_what_is_left_out_is_said(script):
    result = shell(script, 'config.py')
    assert result.returncode != 0 and f'usage: {script} CONFIG' in result.stderr
