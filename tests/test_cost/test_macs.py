import json
import os
from dataclasses import asdict

import pytest
import torch
from conftest import DEMO_CONFIG
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from test_tools import fails
from tiny import DETECTORS, ROOT, build, load_tool, tiny_config

from adn_mmdet import OperatingPoint, SkipConfig, UserError, set_skip
from adn_mmdet.cost import count_costs, count_costs_of_points, default_input_size
from adn_mmdet.cost.macs import _Heads, count_costs_by_part

CODES = SkipConfig.all(4)


@pytest.mark.parametrize('name', DETECTORS)
def test_one_trace_gives_what_a_trace_of_each_code_gives(name):
    model = build(tiny_config(name))
    costs = dict(zip(map(str, CODES), count_costs(model, CODES, (64, 96))))
    for code in ('FFFF', 'TFFT', 'TTTT'):
        set_skip(model.eval(), code)
        traced = FlopAnalyzer(_Heads(model, 1000), torch.zeros(1, 3, 64, 96))
        traced.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert costs[code].gmacs == pytest.approx(traced.total() / 1e9, rel=1e-12), code


@pytest.mark.parametrize('name', DETECTORS)
def test_parts_are_those_of_the_parts_alone(name):
    model = build(tiny_config(name)).eval()
    image = torch.zeros(1, 3, 64, 96)
    costs = dict(zip(map(str, CODES), count_costs_by_part(model, CODES, (64, 96))))
    for code in ('FFFF', 'TFFT'):
        set_skip(model, code)
        alone = [FlopAnalyzer(model.backbone, image), FlopAnalyzer(model.neck, (model.backbone(image),))]
        gmacs = [part.unsupported_ops_warnings(False).total() / 1e9 for part in alone]
        cost = costs[code]
        assert [cost.backbone_gmacs, cost.neck_gmacs] == pytest.approx(gmacs, rel=1e-12), code
        assert cost.backbone_gmacs + cost.neck_gmacs + cost.heads_gmacs == pytest.approx(cost.gmacs, rel=1e-12)


def test_retinanet_of_the_paper():
    # torchvision's: 91 classes and P6 made of P5, where mmdet's with 80 and P6 of C5 takes 149.48 / 129.90 GMACs
    cfg = Config.fromfile(str(ROOT / 'configs' / 'retinanet_r50_adn_1x_coco.py'))
    cfg.model.bbox_head.num_classes, cfg.model.neck.add_extra_convs = 91, 'on_output'
    costs = count_costs(build(cfg), [CODES[0], CODES[-1]], (800, 800))
    assert [cost.gmacs for cost in costs] == pytest.approx([151.54, 132.04], rel=2e-3)


def test_parameters_are_those_of_the_nets_they_stand_for():
    model = build(tiny_config())
    super_net, base_net = count_costs(model, [CODES[0], CODES[-1]], (64, 64))
    parameters = [
        sum(p.numel() for p in build(tiny_config(kind='base', stage_blocks=blocks)).parameters()) / 1e6
        for blocks in ((3, 4, 6, 3), (2, 2, 3, 2))
    ]
    assert [super_net.params_active_m, base_net.params_active_m] == parameters
    held = sum(p.numel() for p in model.parameters()) / 1e6
    assert super_net.params_held_m == base_net.params_held_m == held


def test_every_skipped_block_saves_nearly_the_same():
    # Its convolutions save the same in every stage; only its norms, which count too, are smaller in later ones.
    model = build(tiny_config())
    costs = dict(zip(CODES, count_costs(model, CODES, (64, 64))))
    super_net = costs.pop(CODES[0]).gmacs
    saved = [(super_net - cost.gmacs) / len(model.backbone.skipped_blocks(code)) for code, cost in costs.items()]
    assert saved == pytest.approx([saved[-1]] * 15, rel=0.1)


def test_a_net_without_depths():
    (single,) = count_costs(build(tiny_config(kind='base')), None, (64, 64))
    base_net = count_costs(build(tiny_config()), CODES, (64, 64))[-1]
    assert single.gmacs == pytest.approx(base_net.gmacs, rel=1e-12)
    assert single.params_held_m == single.params_active_m == base_net.params_active_m


@pytest.mark.parametrize('name', ['mask_rcnn', 'retinanet'])
def test_points_cost_what_they_trace(name):
    """Size and proposals of a point are those of a trace of its own, in any order; what is left out is the config's."""
    cfg = tiny_config(name)
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 64)
    model = build(cfg).eval()
    numbers = [None] if name == 'retinanet' else [None, 7]
    points = OperatingPoint.product([CODES[-1], CODES[0]], [None, 32], numbers)[::-1]
    costs = dict(zip(points, count_costs_of_points(model, points, cfg)))
    for point, cost in list(costs.items())[::2]:
        set_skip(model, point.skip)
        shape = (32, 64) if point.size else (64, 96)  # 48 is padded
        traced = FlopAnalyzer(_Heads(model, point.proposals or 1000), torch.zeros(1, 3, *shape))
        traced.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert cost.gmacs == pytest.approx(traced.total() / 1e9, rel=1e-12), str(point)
    assert len({cost.gmacs for cost in costs.values()}) == len(points)


def test_points_of_a_net_without_depths():
    cfg = tiny_config('retinanet', 'base')
    points = OperatingPoint.product([None], [64, 32])
    large, small = count_costs_of_points(build(cfg), points, cfg)
    assert large.gmacs > 3 * small.gmacs and large.params_active_m == small.params_active_m
    with pytest.raises(UserError, match='RetinaNet has no number of proposals to choose'):
        count_costs_of_points(build(cfg), [OperatingPoint(None, 64, 300)], cfg)


def test_counting_changes_nothing():
    model = build(tiny_config(skip='TFFF')).train()
    modes = [module.training for module in model.modules()]
    count_costs(model, CODES, (64, 64))
    assert modes == [module.training for module in model.modules()] and str(model.backbone.skip) == 'TFFF'


def test_default_input_size():
    cfg = Config.fromfile(str(ROOT / 'configs' / 'faster_rcnn_r50_adn_1x_coco.py'))
    assert default_input_size(cfg) == (800, 1280)
    cfg.test_dataloader.dataset.pipeline[1].scale = (640, 400)
    assert default_input_size(cfg) == (416, 640)


@pytest.fixture
def narrow_config(tmp_path):
    def dump(*args, **kwargs):
        tiny_config(*args, **kwargs).dump(tmp_path / 'narrow.py')
        return str(tmp_path / 'narrow.py')

    return dump


def run(*argv):
    return load_tool('complexity').main([*map(str, argv), '--shape', '64', '96'])


def test_script_prints_and_saves_what_is_counted(narrow_config, tmp_path, capsys):
    result = tmp_path / 'new' / 'costs.json'
    assert run(narrow_config(), '--json', result) == 0
    assert 'backbone' in (printed := capsys.readouterr().out) and 'TTTT' in printed
    saved = json.loads(result.read_text())
    costs = count_costs_by_part(build(tiny_config()), CODES, (64, 96))
    about = dict(size=None, proposals=1000)  # --shape is none of the test pipeline's sizes
    assert saved['rows'] == [{'skip': str(code), **about, **asdict(cost)} for code, cost in zip(CODES, costs)]
    assert saved['shape'] == [64, 96]


def test_script_counts_points(narrow_config, tmp_path, capsys):
    main, config, path = load_tool('complexity').main, narrow_config(), tmp_path / 'points.json'
    argv = [config, '--skip', 'FFFF,TTTT', '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,64)']
    assert main([*argv, '--sizes', '64,32', '--proposals', '7', '--json', str(path)]) == 0
    printed = capsys.readouterr().out
    assert all(f' {point} ' in printed for point in ('FFFF@64/7', 'TTTT@64/7', 'FFFF@32/7', 'TTTT@32/7'))
    rows = json.loads(path.read_text())['rows']
    assert [(row['skip'], row['size'], row['proposals']) for row in rows[1:3]] == [('TTTT', 64, 7), ('FFFF', 32, 7)]
    gmacs = [row['gmacs'] for row in rows]
    assert gmacs == sorted(gmacs, reverse=True)
    assert main([*argv, '--proposals', '1000', '--json', str(path)]) == 0
    assert all(row['size'] == 64 for row in json.loads(path.read_text())['rows'])
    fails(main, [*argv, '--sizes', '31'], capsys, 'size should be the short side of the input')
    fails(main, [*argv, '--sizes', '64', '--shape', '64', '64'], capsys, '--shape and --sizes both say')


def test_script_needs_no_data_and_writes_no_folder(elsewhere, capsys):
    assert load_tool('complexity').main([DEMO_CONFIG, '--skip', 'TTTT,ffff']) == 0
    printed = capsys.readouterr().out
    assert 'TTTT' in printed and 'FFFF' in printed and 'TFFF' not in printed
    assert not list(elsewhere.iterdir())


def test_script_on_a_net_without_depths(narrow_config, tmp_path):
    config, result = narrow_config('retinanet', 'base'), tmp_path / 'costs.json'
    assert run(config, '--json', result) == 0
    (row,) = json.loads(result.read_text())['rows']
    assert row['skip'] is None and row['params_held_m'] == row['params_active_m']
    assert run(config, '--skip', 'TTTT') == 2


@pytest.mark.parametrize(
    'argv, message',
    [
        ([DEMO_CONFIG, '--skip', 'TTT'], "'TTT' is not a skip code"),
        ([DEMO_CONFIG.replace('adn', 'and')], 'there is no config'),
        ([DEMO_CONFIG, '--shape', '0', '64'], '--shape should be two positive numbers, but got 0 64'),
        ([DEMO_CONFIG, '--shape', '64', '-1'], '--shape should be two positive numbers, but got 64 -1'),
        ([DEMO_CONFIG, '--json', '/proc/costs/x.json'], 'cannot write to /proc/costs'),
    ],
)
def test_what_the_script_refuses(argv, message, capsys):
    assert load_tool('complexity').main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and error.count('\n') == 1


def test_words_are_explained(capsys):
    with pytest.raises(SystemExit):
        load_tool('complexity').main(['--help'])
    assert '1 MAC = 1 multiplication + 1 addition' in ' '.join(capsys.readouterr().out.split())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, capsys, monkeypatch):
    main, path = load_tool('complexity').main, tmp_path / 'costs.json'
    tiny_config().dump(tmp_path / 'tiny.py')
    argv = [str(tmp_path / 'tiny.py'), '--shape', '64', '64', '--json', str(path)]
    path.write_text('what was there')

    def full(file):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        fails(main, argv, capsys, 'No space left on device')
    assert path.read_text() == 'what was there' and len(list(tmp_path.iterdir())) == 2
    assert main(argv) == 0 and len(json.loads(path.read_text())['rows']) == 16
    fails(main, [*argv[:-1], str(tmp_path)], capsys, 'is a folder: give the name of a file')
