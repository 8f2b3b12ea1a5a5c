"""RoI heads that can be skipped, of the real configs: Mask R-CNN's mask head, and the later stages of Cascade R-CNN."""

import copy
import pickle

import pytest
import torch
from mmdet.registry import MODELS
from tiny import batch, build, small_images, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.cost.macs import count_costs_by_part
from adn_mmdet.distillation.self_distillation import SelfDistillation
from adn_mmdet.export.expressible import require_expressible
from adn_mmdet.export.sub_net import plain_detector

CONFIGS = {'cascade_rcnn': ('adn', 'roi_head', dict(num_stages=1)),
           'mask_rcnn': ('adn_mask-head', 'roi_head.mask_head', dict(num_convs=2))}  # fmt: skip
CODES = SkipConfig.all((4, 1))


def config(name):
    cfg = small_images(tiny_config(name, CONFIGS[name][0]))
    if name == 'mask_rcnn':
        cfg.model.roi_head.mask_head.num_convs = 4
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    return cfg


@pytest.fixture(scope='module', params=CONFIGS)
def named(request):
    return request.param, build(config(request.param)).eval()


def found(detector, data, code):
    with torch.no_grad(), detector.backbone.using_skip(code):
        samples = detector(**copy.deepcopy(data), mode='predict')
    return [sample.pred_instances[key] for sample in samples for key in sorted(sample.pred_instances.keys())]


def same(one, other):
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


def test_every_code_is_a_stock_detector_that_was_cut(named):
    name, detector = named
    data, outputs = batch(detector), {}
    for code in (CODES[0], CODES[1], CODES[-2], CODES[-1]):
        outputs[code] = found(detector, data, code)
        cfg, plain = plain_detector(config(name), detector, code)
        head = cfg.model.roi_head.get('mask_head') or cfg.model.roi_head
        if code.flags[-1]:
            assert CONFIGS[name][2].items() <= dict(head).items()
        assert not ({'of', 'parts'} & cfg.model.keys()) and type(plain) is type(detector)
        with torch.no_grad():
            expected = plain(**copy.deepcopy(data), mode='predict')
        expected = [s.pred_instances[key] for s in expected for key in sorted(s.pred_instances.keys())]
        assert same(outputs[code], expected), code
    assert not same(outputs[CODES[0]], outputs[CODES[1]]) and len(outputs[CODES[0]][0])


def test_names_are_stock_and_training_reaches_every_weight(named):
    name, _ = named
    detector, model = build(config(name)).train(), config(name).model
    model.update(type=model.pop('of'))
    del model['parts']
    model.backbone.skip = 'FFFF'
    plain = MODELS.build(model)
    assert plain.state_dict().keys() == detector.state_dict().keys()
    plain.load_state_dict(detector.state_dict())
    data, losses = batch(detector), []
    for each in (detector, plain.train()):
        torch.manual_seed(0)
        each.zero_grad()
        losses.append(each.parse_losses(each(**copy.deepcopy(data), mode='loss'))[0])
        losses[-1].backward()
    assert losses[0].item() == losses[1].item()
    assert all(
        torch.equal(one.grad, other.grad)
        for one, other in zip(detector.parameters(), plain.parameters())
        if one.grad is not None
    )
    SelfDistillation(detector).attach()
    detector.zero_grad()
    detector.parse_losses(detector(**data, mode='loss'))[0].backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())


def test_cost_falls_and_copies_run_as_they_did(named):
    name, detector = named
    full, cut = count_costs_by_part(detector, CODES[:2], (64, 64))
    assert cut.heads_gmacs < full.heads_gmacs and cut.backbone_gmacs == full.backbone_gmacs
    (plain,) = count_costs_by_part(plain_detector(config(name), detector, CODES[1])[1], None, (64, 64))
    assert (cut.gmacs, cut.params_active_m) == pytest.approx((plain.gmacs, plain.params_active_m))
    data = batch(detector)
    for each in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert all(same(found(each, data, code), found(detector, data, code)) for code in CODES[:2])
    with pytest.raises(UserError, match='a detector with a skippable roi_head.* cannot be exported'):
        require_expressible(detector)


def test_a_head_without_stages_is_refused():
    cfg = config('mask_rcnn')
    cfg.model.parts = [dict(type='SkippableStages', keep=1)]
    with pytest.raises(UserError, match='SkippableStages of roi_head: StandardRoIHead has no stages'):
        build(cfg)
