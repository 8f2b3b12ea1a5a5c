import cv2
import numpy as np
import pytest
from artifact import make_artifact
from benchmarks import held
from benchmarks.held import SETTLED, Scripted, settled_p95
from conftest import DEMO_CONFIG


def test_what_is_settled():
    """Frames soon after a change of load are left out, and the others are all in."""
    times = np.full(100, 40.0)
    times[50 : 50 + SETTLED] = 400.0
    assert settled_p95(times, 40.0, 50) == 1.0
    times[50 + SETTLED : 50 + SETTLED + 4] = 60.0  # more than a twentieth of 60
    assert settled_p95(times, 40.0, 50) > 1.1


def test_points_take_turns():
    script, ran = Scripted([0, 2, 1]), []
    for _ in range(4):
        ran.append(script.index)
        script.update(1e9)
    assert ran == [0, 2, 1, 0] and not script.cannot_hold


def test_the_benchmark(shapes, tmp_path, capsys):
    """A load that comes and goes, all points under it, and a picture."""
    rows = [dict(skip='FFFF', bbox_mAP=0.5), dict(skip='TTTT', bbox_mAP=0.4)]
    path = make_artifact(tmp_path / 'a.onnx', about=dict(rows=rows), work=8)
    argv = [DEMO_CONFIG, str(path), '--images', str(shapes / 'val'), '--budget-ms', '1000', '--threads', '1']
    small = ['--frames', '44', '--period', '22', '--rounds', '10', '--plot', str(tmp_path / 'held.png')]
    assert held.main([*argv, *small]) == 0
    printed = capsys.readouterr().out
    assert 'FFFF' in printed and 'ran in 100% of frames' in printed
    assert '× budget (goal: at most 1.10)' in printed and 'best fixed point under load 50.00 (FFFF)' in printed
    assert 'ms (goal: at most 1)' in printed
    assert cv2.imread(str(tmp_path / 'held.png')).shape == (450, 810, 3)
    assert (tmp_path / 'held.png').stat().st_size < 100_000
    capsys.readouterr()
    assert held.main([*argv, '--period', '20']) == 2
    assert 'period' in capsys.readouterr().err


@pytest.mark.parametrize('processes', [0, 2])
def test_a_load_is_gone_afterwards(processes):
    with held.load(processes) as running:
        assert len(running) == processes and all(process.poll() is None for process in running)
    assert all(process.poll() is not None for process in running)
