import json

import pytest
from benchmarks.step_time import ADN, ADN_FEATURES, ADN_SEQUENTIAL, BASE_NET, SUPER_NET, training_steps
from conftest import DEMO_CONFIG
from tiny import load_tool, tiny_config

from adn_mmdet import UserError


def floats(log):
    return {key: float(value) for key, value in log.items()}


def test_steps_do_comparable_work_and_learn_nothing():
    steps = training_steps(tiny_config('mask_rcnn'), (64, 64), 1, 'cpu')
    logs, again = ({name: floats(step()) for name, step in steps.items()} for _ in range(2))
    assert logs == again
    assert list(logs) == [SUPER_NET, BASE_NET, ADN, ADN_FEATURES, ADN_SEQUENTIAL]
    assert logs[SUPER_NET].keys() == logs[BASE_NET].keys() and 'loss_mask' in logs[BASE_NET]
    assert {'super.loss_mask', 'base.loss_mask', 'kd.loss_p2'} <= logs[ADN].keys()
    assert {key for key in logs[ADN] if not key.startswith('base.')} == logs[ADN_FEATURES].keys()
    assert logs[ADN_SEQUENTIAL] == pytest.approx(logs[ADN], rel=1e-6)
    # The same weights, images and samples: the super-net's losses are half of what it has alone.
    for key, value in logs[SUPER_NET].items():
        if key.startswith('loss_'):
            assert logs[ADN][f'super.{key}'] == pytest.approx(value / 2), key


def test_held_activations():
    steps = training_steps(tiny_config('retinanet'), (256, 256), 1, 'cpu')
    held = {name: step.peak_saved_bytes() for name, step in steps.items()}
    assert held[BASE_NET] < held[SUPER_NET] < held[ADN_FEATURES] < held[ADN] < 2 * held[SUPER_NET]
    assert held[ADN_SEQUENTIAL] < 1.15 * held[SUPER_NET]


def test_a_config_that_does_not_distil():
    cfg = tiny_config()
    cfg.custom_hooks = []
    with pytest.raises(UserError, match='one SkipAwareDistillationHook, but has 0'):
        training_steps(cfg, (64, 64), 1, 'cpu')


def test_benchmark_of_a_step(tmp_path, capsys):
    argv = ['train', '--config', DEMO_CONFIG, '--shape', '64', '64', '--rounds', '1']
    assert load_tool('benchmark').main([*argv, '--json', str(tmp_path / 'step.json')]) == 0
    assert 'time: ADN / both individual nets' in capsys.readouterr().out
    written = json.loads((tmp_path / 'step.json').read_text())
    assert written['run']['shape'] == [64, 64] and all(value > 0 for value in written['ratios'].values())
    assert load_tool('benchmark').main(['train', '--config', 'faster']) == 2
    assert 'there is no config' in capsys.readouterr().err
