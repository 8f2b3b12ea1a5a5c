"""Test runs through tools/test.py."""

import builtins
import json
import pickle
from collections import Counter

import mmcv
import mmengine.fileio
import pytest
import torch
from conftest import DEMO_CONFIG
from tiny import load_tool

from adn_mmdet import ExactCocoMetric
from adn_mmdet.evaluation.loops import SubNetLoop

CODES = ['FFFF', 'TTFF', 'TTTT']
ALL = ','.join(CODES)


@pytest.fixture
def test(trained, tiny_options, tmp_path):
    """Test the demo's checkpoint; give the exit code."""
    main = load_tool('test').main

    def run(*arguments, options=()):
        argv = [DEMO_CONFIG, str(trained / 'iter_4.pth'), '--work-dir', str(tmp_path / 'work')]
        return main([*argv, *arguments, *tiny_options, 'test_dataloader.dataset.indices=2', *options])

    return run


@pytest.fixture
def rows(tmp_path):
    """The rows that are written."""
    return lambda: {row['skip']: row for row in json.loads((tmp_path / 'work/sub_nets.json').read_text())['rows']}


@pytest.fixture
def passes(monkeypatch):
    """The codes of every batch that is tested."""
    seen = []
    run_iter = SubNetLoop.run_iter
    monkeypatch.setattr(SubNetLoop, 'run_iter', lambda self, *args: (seen.append(self.codes), run_iter(self, *args)))
    return seen


def test_files_are_read_once_for_all_depths(test, monkeypatch):
    reads = Counter()

    def counted(function):
        def call(path, *args, **kwargs):
            if str(path).endswith(('.jpg', '.png', 'instances_val.json')):
                reads[str(path).rpartition('.')[2]] += 1
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(mmengine.fileio, 'get', counted(mmengine.fileio.get))
    monkeypatch.setattr(builtins, 'open', counted(open))
    assert test('--skip', 'TTTT') == 0
    of_one = dict(reads)
    assert test('--skip', 'all', options=['model.test_cfg.rcnn.max_per_img=19']) == 0
    of_all = {kind: reads[kind] - number for kind, number in of_one.items()}
    assert of_one == of_all and len(of_one) == 2


def test_a_stopped_run_keeps_its_rows_and_a_rerun_takes_up_there(test, rows, passes, monkeypatch):
    evaluations, compute = [], ExactCocoMetric.compute_metrics

    def stopped(self, results):
        evaluations.append(1)
        if len(evaluations) == 3:
            raise KeyboardInterrupt
        return compute(self, results)

    with monkeypatch.context() as patch:
        patch.setattr(ExactCocoMetric, 'compute_metrics', stopped)
        with pytest.raises(KeyboardInterrupt):
            test('--skip', ALL)
    kept = rows()
    assert list(kept) == CODES[:2]
    passes.clear()
    assert test('--skip', ALL) == 0
    assert {tuple(map(str, codes)) for codes in passes} == {('TTTT',)}
    assert list(rows()) == CODES and all(rows()[code] == row for code, row in kept.items())


def test_only_what_is_missing_is_tested(test, rows, passes, capsys):
    assert test('--skip', 'FFFF,TTTT') == 0
    first = rows()
    passes.clear()
    assert test('--skip', ALL) == 0
    assert {tuple(map(str, codes)) for codes in passes} == {('TTFF',)}
    assert 'FFFF, TTTT: in ' in capsys.readouterr().out
    assert list(rows()) == CODES and all(rows()[code] == row for code, row in first.items())
    passes.clear()
    assert test('--skip', 'TTTT', options=['test_dataloader.pin_memory=False']) == 0 and not passes
    assert 'box AP' in capsys.readouterr().out  # the table nevertheless
    assert test('--skip', 'TTTT', options=['model.test_cfg.rcnn.score_thr=0.1']) == 0 and passes
    assert list(rows()) == ['TTTT']


def test_predictions_and_pictures_asked_for_are_made_anew(test, passes, tmp_path):
    assert test('--skip', ALL) == 0
    passes.clear()
    outputs = ['--out', str(tmp_path / 'found.pkl'), '--show-dir', str(tmp_path / 'pictures')]
    assert test('--skip', ALL, *outputs, options=[f'test_evaluator.outfile_prefix={tmp_path}/results']) == 0
    assert len(passes) == 2
    found = {code: pickle.loads((tmp_path / f'found_{code}.pkl').read_bytes()) for code in CODES}
    boxes = [torch.cat([image['pred_instances']['bboxes'] for image in images]) for images in found.values()]
    assert all(len(list((tmp_path / 'pictures' / code).iterdir())) == 2 for code in CODES)
    results = [json.loads((tmp_path / f'results_{code}.bbox.json').read_text()) for code in CODES]
    assert [len(result) for result in results] == [len(box) for box in boxes]
    pictures = [mmcv.imread(str(next((tmp_path / 'pictures' / code).iterdir()))) for code in CODES]
    assert (pictures[0] != pictures[2]).any() and not torch.equal(boxes[0], boxes[2])


def test_mixed_precision(test, rows):
    assert test('--amp', '--skip', 'FFFF,TTTT') == 0
    assert list(rows()) == ['FFFF', 'TTTT'] and all(row['bbox_mAP'] is not None for row in rows().values())
