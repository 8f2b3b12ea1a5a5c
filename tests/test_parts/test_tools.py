"""The scripts on a detector whose head can be skipped: train, test at all 32 codes, count, time, compare, export."""

import json

import pytest
from conftest import DEMO_CONFIG
from mmengine.config import Config
from tiny import load_tool, tiny_config

from adn_mmdet import SkipConfig
from adn_mmdet.inference import AnyDepthInferencer

CODES = [str(code) for code in SkipConfig.all((4, 1))]


@pytest.fixture(scope='module')
def trained_gfl(shapes, tiny_options, tmp_path_factory):
    """What the scripts take of a small GFL after four iterations, and its work folder with rows of all codes."""
    folder = tmp_path_factory.mktemp('gfl')
    cfg = Config.fromfile(DEMO_CONFIG)
    cfg.val_evaluator.metric = cfg.test_evaluator.metric = ['bbox']
    cfg.model = tiny_config('gfl').model
    cfg.model.bbox_head.update(stacked_convs=3, norm_cfg=dict(type='GN', num_groups=4, requires_grad=True))
    cfg.dump(folder / 'gfl.py')
    config, checkpoint = str(folder / 'gfl.py'), str(folder / 'iter_4.pth')
    options = ['--work-dir', str(folder), *tiny_options]
    assert load_tool('train').main([config, *options]) == 0
    assert load_tool('test').main([config, checkpoint, '--skip', 'all', *options]) == 0
    return config, checkpoint, folder


def rows_of(path):
    return {row['skip']: row for row in json.loads(path.read_text())['rows']}


def test_all_codes_are_tested_counted_and_compared(trained_gfl, tmp_path, capsys):
    config, checkpoint, folder = trained_gfl
    rows = rows_of(folder / 'sub_nets.json')
    assert sorted(rows) == sorted(CODES)
    assert all(rows[f'{code}-T']['gmacs'] < rows[f'{code}-F']['gmacs'] for code in map(str, SkipConfig.all(4)))
    argv = [config, '--json', str(tmp_path / 'cost.json'), '--shape', '64', '64']
    assert load_tool('complexity').main(argv) == 0
    costs = json.loads((tmp_path / 'cost.json').read_text())
    assert [row['skip'] for row in costs['rows']] == CODES
    assert load_tool('compare').main([str(folder), '--out', str(tmp_path / 'compare')]) == 0
    printed = capsys.readouterr().out
    assert 'TTTT-T' in printed and 'FFFF-F' in printed


def test_a_depth_is_timed_and_run_by_its_code(trained_gfl, shapes, tmp_path, capsys):
    config, checkpoint, _ = trained_gfl
    latency = tmp_path / 'latency.json'
    argv = ['latency', config, checkpoint, '--skip', 'TTTT-T,FFFFT', '--rounds', '1', '--json', str(latency)]
    assert load_tool('benchmark').main([*argv, '--images', str(shapes / 'val')]) == 0
    assert [row['skip'] for row in json.loads(latency.read_text())['rows']] == ['FFFF-F', 'TTTT-T', 'FFFF-T']
    image = str(next((shapes / 'val').iterdir()))
    found = AnyDepthInferencer(config, checkpoint, device='cpu')(image, skip='ttttt')
    assert found['predictions'][0]['skip'] == 'TTTT-T'
