import json
from functools import partial

import pytest
import torch
from test_tools import fails
from tiny import build, load_tool, tiny_config

from adn_mmdet.backbones.compiled import compile_stages
from adn_mmdet.cost import latency_run
from adn_mmdet.files import file_sha256


@pytest.fixture(scope='module')
def main():
    return load_tool('benchmark').main


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('latency') / 'tiny.py'
    tiny_config('retinanet').dump(path)
    return str(path)


@pytest.fixture(scope='module')
def checkpoint(config):
    path = config.replace('.py', '.pth')
    torch.save(build(tiny_config('retinanet')).state_dict(), path)
    return path


def quick(*argv):
    return ['latency', *argv, '--shape', '64', '96', '--rounds', '1', '--device', 'cpu']


def test_table_and_file(main, config, checkpoint, tmp_path, capsys):
    path = tmp_path / 'new' / 'latency.json'
    argv = quick(config, checkpoint, '--skip', 'ffff,TTFT', '--batch-size', '2', '--amp', '--json', str(path))
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert 'TTFT' in printed and '2×3×64×96' in printed and 'post' in printed and 'Untrained' not in printed
    content = json.loads(path.read_text())
    assert (content['schema'], content['kind']) == (1, 'latency')
    run = content['run']
    assert run.pop('device') and run.pop('versions').keys() == {'python', 'torch', 'mmdet'}
    assert run == dict(
        name='tiny',
        config=config,
        checkpoint_sha256=file_sha256(checkpoint),
        threads=torch.get_num_threads(),
        batch_size=2,
        input_size=[64, 96],
        amp=True,
        channels_last=False,
        compile=False,
        rounds=1,
    )
    names = 'skip ms ms_p90 ms_iqr backbone_ms neck_ms heads_ms post_ms ratio ratio_low ratio_high'
    assert [' '.join(row) for row in content['rows']] == [names] * 2
    super_net, other = content['rows']
    assert (super_net['skip'], super_net['ratio'], other['skip']) == ('FFFF', 1.0, 'TTFT')
    assert other['ratio'] == other['ms'] / super_net['ms']


def test_all_codes_of_untrained_weights(main, config, tmp_path, capsys):
    path = tmp_path / 'latency.json'
    assert main([*quick(config, '--channels-last'), '--json', str(path)]) == 0
    assert 'Untrained weights' in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert len({row['skip'] for row in content['rows']}) == 16 and content['rows'][0]['skip'] == 'FFFF'
    assert content['run']['checkpoint_sha256'] is None and content['run']['channels_last']


def test_a_compiled_net_without_depths(main, tmp_path, capsys, monkeypatch):
    config, path = tmp_path / 'base.py', tmp_path / 'latency.json'
    tiny_config('retinanet', 'base').dump(config)
    compiled = []
    monkeypatch.setattr(latency_run, 'compile_stages', compiled.append)
    argv = [*quick(str(config)), '--json', str(path)]
    assert main([*argv, '--compile']) == 0
    content = json.loads(path.read_text())
    assert [row['skip'] for row in content['rows']] == [None] and content['run']['compile']
    assert [type(model).__name__ for model in compiled] == ['RetinaNet']
    fails(main, [*argv, '--skip', 'all'], capsys, 'ShallowResNet has no depth to choose')

    def no_compiler(graph, inputs):
        raise RuntimeError('no g++')

    monkeypatch.setattr(latency_run, 'compile_stages', partial(compile_stages, backend=no_compiler))
    fails(main, [*argv, '--compile'], capsys, 'torch.compile failed (no g++): it needs a C++ compiler')


def test_mistakes(main, config, checkpoint, tmp_path, capsys):
    for option, name in (('--rounds', 'rounds'), ('--batch-size', 'batch_size')):
        fails(main, ['latency', config, option, '0'], capsys, f'{name} should be at least 1, but got 0')
    fails(main, ['backbone', '--shape', '-1', '9'], capsys, 'shape should be at least 1, but got -1')
    fails(main, [*quick(config), '--json', str(tmp_path)], capsys, 'is a folder')
    fails(main, [*quick(config), '--json', '/proc/nowhere/x.json'], capsys, 'cannot write to /proc/nowhere')
    fails(main, quick(config, 'none.pth'), capsys, 'there is no checkpoint none.pth')
    fails(main, quick(config, '--skip', 'TTT'), capsys, 'such as FFFF (super-net) or TTTT (base-net)')
    fails(main, quick('none.py'), capsys, 'there is no config none.py')
    disagreeing = ['--skip', 'TTTT', '--cfg-options', 'model.backbone.skip=FFFF']
    fails(main, [*quick(config), *disagreeing], capsys, 'disagree')
    if not torch.cuda.is_available():
        fails(main, [*quick(config), '--device', 'cuda'], capsys, 'torch sees no GPU')
    plain = tmp_path / 'plain.pth'
    weights = torch.load(checkpoint)
    torch.save({name: value for name, value in weights.items() if '_skip' not in name}, plain)
    fails(main, quick(config, str(plain)), capsys, '--allow-untrained')
