import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from tiny import DETECTORS, ROOT, build, tiny_config

from adn_mmdet import SkipConfig, set_skip
from adn_mmdet.evaluation import count_costs, default_input_size
from adn_mmdet.evaluation.complexity import _Heads

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
