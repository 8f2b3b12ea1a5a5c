"""Heads whose towers can be skipped, of the real configs: every code is a stock detector, cut, to the bit."""

import copy
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from tiny import batch, build, tiny_config
from torch import nn

from adn_mmdet import SkipConfig, UserError, set_skip
from adn_mmdet.backbones.resnet import AdaptiveDepthBottleneck
from adn_mmdet.backbones.sharing import sharing
from adn_mmdet.checkpoints import load_for_testing
from adn_mmdet.config import choose_codes
from adn_mmdet.cost.macs import count_costs_by_part
from adn_mmdet.distillation.self_distillation import SelfDistillation
from adn_mmdet.distillation.settings import DistillationSettings

CONFIGS = {'gfl': 'adn', 'atss': 'adn', 'fcos': 'adn', 'retinanet': 'adn_tower'}
CODES = SkipConfig.all((4, 1))
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
every_config = pytest.mark.parametrize('name', CONFIGS)
gfl = pytest.mark.parametrize('name', ['gfl'])


def config(name):
    cfg = tiny_config(name, CONFIGS[name])
    cfg.model.bbox_head.stacked_convs = 4
    if name != 'retinanet':
        cfg.model.bbox_head.norm_cfg = dict(type='GN', num_groups=4, requires_grad=True)
    return cfg


def with_head(name, part=None, **head):
    """The detector of a config whose head, or whose part, differs."""
    cfg = config(name)
    cfg.model.bbox_head.update(head)
    cfg.model.parts[0].update(part or {})
    return build(cfg)


@pytest.fixture(scope='module')
def detectors():
    return {name: build(config(name)) for name in CONFIGS}


@pytest.fixture
def detector(detectors, name):
    """One that no test may change; in eval mode."""
    return detectors[name].eval()


def stock(name, stacked_convs=4):
    """mmdet's own detector of the same config, on the any-depth backbone alone."""
    init_default_scope('mmdet')
    model = copy.deepcopy(config(name).model)
    model.update(type=model.pop('of'))
    del model['parts']
    model.backbone.update(skip='FFFF')
    model.bbox_head.stacked_convs = stacked_convs
    return MODELS.build(model).eval()


def outputs(detector, code):
    with torch.no_grad(), detector.backbone.using_skip(code):
        return [tensor for tensors in detector(IMAGES) for tensor in tensors]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def gradients(detector, data, code):
    detector.train().zero_grad()
    with detector.backbone.using_skip(code):
        losses = detector(**copy.deepcopy(data), mode='loss')
    detector.parse_losses(losses)[0].backward()
    return losses, {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}


@every_config
def test_the_super_net_is_the_stock_detector(detector, name):
    plain, own = stock(name), detector.state_dict()
    twins = {f'bbox_head.{tower}.{i}.gn_skip.{key}'
             for tower in ('cls_convs', 'reg_convs') for i in (0, 1) for key in ('weight', 'bias')}  # fmt: skip
    assert own.keys() - plain.state_dict().keys() == (set() if name == 'retinanet' else twins)
    assert type(detector) is type(plain) and type(detector.bbox_head) is type(plain.bbox_head)
    plain.load_state_dict({key: own[key] for key in plain.state_dict()})
    assert same(outputs(detector, 'FFFF-F'), outputs(plain, 'FFFF'))
    data = batch(detector)
    (losses, grads), (expected, expected_grads) = gradients(detector, data, 'FFFF-F'), gradients(plain, data, 'FFFF')
    assert losses.keys() == expected.keys() and grads.keys() == expected_grads.keys()
    assert all(
        same(*([*value] if isinstance(value, list) else [value] for value in pair))
        for pair in zip(losses.values(), expected.values())
    )
    assert all(torch.equal(grads[key], expected_grads[key]) for key in grads)
    detector.zero_grad()


@every_config
def test_every_code_is_a_stock_detector_that_was_cut(detector, name):
    plain, cut, own = stock(name), stock(name, stacked_convs=2), detector.state_dict()
    plain.load_state_dict({key: own[key] for key in plain.state_dict()})
    cut.load_state_dict({key: own.get(key.replace('.gn.', '.gn_skip.'), own[key]) for key in cut.state_dict()})
    found = {str(code): outputs(detector, code) for code in (CODES if name == 'gfl' else CODES[1::15])}
    for code in found:
        assert same(found[code], outputs(cut if code[-1] == 'T' else plain, code[:4])), code
    assert len({value[0].sum().item() for value in found.values()}) == len(found) >= 3


@every_config
def test_a_training_step_reaches_every_weight(name):
    detector = build(config(name)).train()
    SelfDistillation(detector, DistillationSettings(prediction_weight=1.0)).attach()
    losses = detector(**batch(detector), mode='loss')
    detector.parse_losses(losses)[0].backward()
    names = {name for name, parameter in detector.named_parameters() if parameter.grad is None}
    assert not names and {'super.loss_cls', 'base.loss_cls', 'kd.loss_p3', 'kd.loss_cls'} <= losses.keys()
    assert str(detector.backbone.skip) == 'FFFF-F'


@gfl
def test_predictions_of_the_base_net_are_made_by_its_own_head(name):
    detector = build(config(name))
    SelfDistillation(detector, DistillationSettings(gt_weight=0.0, prediction_weight=1.0, kd_weight=0.0)).attach()
    losses = detector(**batch(detector), mode='loss')
    assert losses.keys().isdisjoint({'base.loss_cls', 'base.loss_bbox'})
    (losses['kd.loss_cls'] + losses['kd.loss_bbox']).backward()
    for tower in (detector.bbox_head.cls_convs, detector.bbox_head.reg_convs):
        skippable = [p for item in tower.children() for p in item.conv.parameters()][2:]
        assert all(p.grad is None for p in skippable)
        assert tower[0].gn_skip.weight.grad.abs().sum() > 0 and tower[0].gn.weight.grad is None
    with pytest.raises(UserError, match='gt_weight=0 would leave bbox_head untrained at the base-net'):
        SelfDistillation(build(config(name)), DistillationSettings(gt_weight=0.0))


@gfl
def test_threads_copies_and_compiled_ones_run_at_their_own_depth(detector, name):
    codes = [CODES[0], CODES[1], CODES[-1]]
    alone = [outputs(detector, code) for code in codes]
    with ThreadPoolExecutor(3) as pool:
        assert all(map(same, alone * 4, pool.map(lambda code: outputs(detector, code), codes * 4)))
    with detector.backbone.using_skip('TTTT-T'):
        copies = copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))
    for each in copies:
        assert str(each.backbone.skip) == 'TTTT-T' and same(outputs(each, each.backbone.skip), alone[-1])
        each.backbone.set_skip('FFFFF')  # of the copy alone
        assert same(outputs(each, each.backbone.skip), alone[0]) and str(detector.backbone.skip) == 'FFFF-F'
    compiled = torch.compile(copies[0].bbox_head, backend='eager')
    for code in (*codes, *codes):
        with torch.no_grad(), copies[0].backbone.using_skip(code):
            found = compiled(copies[0].extract_feat(IMAGES))
        assert same([tensor for tensors in found for tensor in tensors], alone[codes.index(code)])


@gfl
def test_in_one_pass_backbone_and_neck_run_once_for_both_letters(detector, name):
    runs, alone = Counter(), [outputs(detector, code) for code in CODES]
    blocks = [module for module in detector.modules() if isinstance(module, AdaptiveDepthBottleneck)]
    counted = [('block', block) for block in blocks] + [('neck', detector.neck.fpn_convs[0])]
    hooks = [module.register_forward_hook(lambda *_, what=what: runs.update([what])) for what, module in counted]
    with sharing(detector):
        shared = [outputs(detector, code) for code in CODES]
    for hook in hooks:
        hook.remove()
    assert runs == dict(block=93, neck=16)
    assert all(map(same, alone, shared))


@gfl
def test_cost_of_a_skipped_tower_is_that_of_a_cut_one(detector, name):
    for own, stacked in zip(count_costs_by_part(detector, CODES[:2], (64, 64)), (4, 2)):
        (plain,) = count_costs_by_part(stock(name, stacked), [SkipConfig.super_net(4)], (64, 64))
        assert (own.gmacs, own.heads_gmacs) == pytest.approx((plain.gmacs, plain.heads_gmacs))
        assert (own.backbone_gmacs, own.neck_gmacs) == pytest.approx((plain.backbone_gmacs, plain.neck_gmacs))
        assert own.params_active_m == pytest.approx(plain.params_active_m)


@gfl
def test_stock_weights_are_loaded_with_clones_and_those_of_another_split_refused(detector, name, tmp_path):
    weights = {key: value for key, value in detector.state_dict().items() if '_skip.' not in key}
    own, path = build(config(name)).eval(), tmp_path / 'stock.pth'
    torch.save(weights, path)
    with pytest.warns(UserWarning, match='^4 skip-aware norms are not in these weights'):
        load_for_testing(own, path, [CODES[0]])
    assert own.backbone.num_untrained_norms == 31  # 27 of the backbone
    assert torch.equal(own.bbox_head.reg_convs[1].gn_skip.weight, weights['bbox_head.reg_convs.1.gn.weight'])
    with pytest.raises(UserError, match='FFFF-T would be tested untrained'):
        load_for_testing(own, path, [CODES[1]])
    load_for_testing(own, path, checkpoint=detector.state_dict())
    assert own.backbone.num_untrained_norms == 0 and same(outputs(own, CODES[1]), outputs(detector, CODES[1]))
    with pytest.raises(UserError, match=r'different items \(such as .*\): use the keep that they were trained with'):
        with_head(name, dict(keep=1)).load_state_dict(detector.state_dict())
    keys = with_head(name, dict(skip_aware_norm=False)).bbox_head.state_dict()
    assert not any('_skip' in key for key in keys)


@pytest.mark.parametrize(
    'part, head, message',
    [
        (
            dict(of='box_head'),
            {},
            'SkippableTower of box_head: GFL has no such module; its own are .*bbox_head',
        ),
        (dict(of='neck'), {}, 'SkippableTower of neck: FPN has no lists of convolutions to skip'),
        (dict(keep=0), {}, 'keep should be from 1 to 3, as there are 4 items, but got 0'),
        (dict(keep=4), {}, 'keep should be from 1 to 3, as there are 4 items, but got 4'),
        (dict(keep='2'), {}, "but got '2'"),
        ({}, dict(stacked_convs=1), 'GFLHead has no lists of convolutions to skip'),
    ],
)
def test_parts_that_do_not_fit_are_refused(part, head, message):
    with pytest.raises(UserError, match=message) as error:
        with_head('gfl', part, **head)
    assert '\n' not in str(error.value)


@gfl
def test_activation_checkpointing_of_a_part_is_refused(detector, name):
    part, net = copy.deepcopy(detector.backbone.parts[0]), stock(name)
    net.bbox_head.reg_convs[0].with_cp = True
    with pytest.raises(UserError, match='SkippableTower of bbox_head cannot .* checkpointing: leave its with_cp out'):
        part.attach(net, net.backbone)


@gfl
def test_codes_have_a_letter_a_part(detector, name):
    cfg = config(name)
    assert list(map(str, choose_codes(cfg, 'ffff-f,TTTTT'))) == ['FFFF-F', 'TTTT-T']
    assert choose_codes(cfg, 'all') == CODES and list(map(str, choose_codes(cfg, None))) == ['FFFF-F']
    for code in ('TTTT', 'TT-TTT', 'TTTT-T-T', [True] * 4):
        with pytest.raises(UserError, match='one of each of 1 parts beyond.*FFFF-F .super-net. or TTTT-T'):
            set_skip(detector, code)
    cfg.model.backbone.skip = 'TTTT'
    with pytest.raises(UserError, match="'TTTT' is not a skip code"):
        build(cfg)
    assert isinstance(detector.bbox_head.cls_convs, nn.ModuleList) and len(detector.bbox_head.cls_convs) == 4
