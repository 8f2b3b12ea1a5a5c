"""What holds of every stock detector that is any-depth by a config diff of a few lines."""

import copy
import warnings
from functools import cache
from itertools import product

import pytest
import torch
from any_depth import (
    ADAPTIVE,
    CONFIGS,
    cut,
    data,
    detector_of,
    losses,
    predictions,
    small_config,
    stock_config_of,
    stock_of,
)
from mmdet.registry import MODELS as DETECTORS
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from tiny import ROOT

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.backbones import sharing
from adn_mmdet.config import choose_codes, load_config
from adn_mmdet.cost import count_costs
from adn_mmdet.distillation import DistillationSettings, SelfDistillation
from adn_mmdet.export.sub_net import plain_detector
from adn_mmdet.parts import SkippableCSP, SkippableLayers

WRITTEN = ('rtmdet_s', 'rtmdet_m', 'rtmdet_l', 'dino-4scale_r50', 'deformable-detr_r50')
every_detector = pytest.mark.parametrize('name', CONFIGS)


def without_gradient(detector):
    return {key for key, value in detector.named_parameters() if value.requires_grad and value.grad is None}


@every_detector
def test_super_net_is_the_stock_detector(name):
    """Class, keys and predictions; stock weights load, with clones for the second set."""
    detector, stock = copy.deepcopy(detector_of(name)), stock_of(name)
    assert type(detector) is type(stock)
    assert [key for key in detector.state_dict() if '_skip.' not in key] == list(stock.state_dict())
    found = predictions(detector, name)
    assert len(found[0]) and all(map(torch.equal, found, predictions(stock, name)))
    with pytest.warns(UserWarning, match='skip-aware norms are not in these weights'):
        load_state_dict(detector, stock.state_dict(), strict=True)
    state = detector.state_dict()
    assert all(torch.equal(value, state[key.replace('_skip.', '.')]) for key, value in state.items())
    assert detector.backbone.num_untrained_norms > 27
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_state_dict(detector, detector_of(name).state_dict(), strict=True)
    assert detector.backbone.num_untrained_norms == 0


@every_detector
def test_every_code_is_a_stock_detector_that_is_cut(name):
    """All letters of parts, to the bit; all of stages are in test_networks.py."""
    detector, found = detector_of(name), []
    _, *letters = product('FT', repeat=len(detector.backbone.parts))  # the first is above
    for code in [''.join((stages, *each)) for each, stages in zip(letters, ('FTTF', 'TTFF', 'TFFT'))]:
        with detector.backbone.using_skip(code):
            found.append(predictions(detector, name))
        assert all(map(torch.equal, found[-1], predictions(cut(name, code), name))), code
    assert len({tuple(tensor.sum().item() for tensor in each) for each in found}) == len(found)


@pytest.mark.parametrize('name', ['rtmdet', 'deformable-detr'])
def test_cost_is_that_of_a_detector_that_is_cut(name):
    skip = SkipConfig.base_net(detector_of(name).backbone.letter_groups)
    (cost,) = count_costs(detector_of(name), [skip], (64, 64))
    (alone,) = count_costs(cut(name, skip), None, (64, 64))
    assert (cost.gmacs, cost.params_active_m) == pytest.approx((alone.gmacs, alone.params_held_m), rel=1e-9)


@pytest.mark.parametrize('name', ['dino', 'deformable-detr', 'detr', 'rtmdet'])
def test_predictions_train_the_base_net_where_it_has_no_truth(name):
    """Whatever the order of a DETR's queries; a net compared with itself is 0 apart."""
    detector = copy.deepcopy(detector_of(name)).train()
    distillation = SelfDistillation(detector, DistillationSettings(gt_weight=0.0, kd_weight=0.0, prediction_weight=1.0))
    distillation.attach()
    found = losses(detector, name)
    assert not any(key.startswith('base.') for key in found)
    (found['kd.loss_cls'] + found['kd.loss_bbox']).backward()
    paths = [part.sub_paths for part in detector.backbone.parts]
    twins = [getattr(module, f'{norm}_skip', None) for path in paths for module, norm in path.norms]
    assert any(twins) and all(twin.weight.grad is not None for twin in twins if twin)
    assert all(any(p.grad is not None for p in item.parameters()) for path in paths for item in path.mandatory)
    assert all(p.grad is None for path in paths for item in path.skippable for p in item.parameters())
    kl = distillation.predictions
    if name != 'rtmdet':
        logits, boxes, order = torch.randn(2, 10, 4), torch.rand(2, 10, 4), torch.randperm(10)
        own, shuffled = {kl.head: (logits, boxes)}, {kl.head: (logits[:, order], boxes[:, order])}
        assert all(loss == 0 for loss in kl.losses(own, shuffled).values())
        assert all(loss > 0 for loss in kl.losses(own, {kl.head: (logits + 1, boxes / 2)}).values())


def test_masks_are_not_compared():
    with pytest.raises(UserError, match='gt_weight=0 would leave bbox_head untrained at the base-net'):
        SelfDistillation(detector_of('rtmdet-ins'), DistillationSettings(gt_weight=0.0, prediction_weight=1.0))


@every_detector
def test_a_training_step_reaches_both_nets(name):
    """The super-net's losses are the stock detector's to the bit; the same weights get gradients, and all twins."""
    detector, stock = copy.deepcopy(detector_of(name)).train(), stock_of(name)
    stock.train()
    SelfDistillation(detector, DistillationSettings()).attach()
    found, expected = losses(detector, name), losses(stock, name)
    for key, value in expected.items():
        if key != 'loss':
            assert torch.equal(found[f'super.{key}'], 0.5 * value if 'loss' in key else value), key
    assert all(torch.isfinite(value) for value in found.values())
    assert ('kd.loss_memory' in found) == (name not in ('rtmdet', 'rtmdet-ins', 'yolox'))
    found['loss'].backward(), expected['loss'].backward()
    assert without_gradient(detector) == without_gradient(stock)
    assert detector.backbone.skip == SkipConfig.super_net(detector.backbone.letter_groups)


@pytest.mark.parametrize('name', ['rtmdet', 'dino'])
def test_what_is_exported_is_for_mmdet_alone(name):
    """A stock config with fewer blocks, layers and convolutions, as tools/export_sub_net.py writes it."""
    code = SkipConfig.parse('TFFT-T-T')
    plain_cfg, plain = plain_detector(small_config(name), detector_of(name), code)
    model = plain_cfg.model
    assert type(plain) is type(detector_of(name)) and model.type in ('RTMDet', 'DINO') and 'parts' not in model
    if name == 'rtmdet':
        assert [stage[2] for stage in model.backbone.arch_ovewrite] == [1, 4, 4, 1]
        assert (model.backbone.type, model.neck.num_csp_blocks, model.bbox_head.stacked_convs) == (
            'mmdet.CSPNeXt',
            1,
            1,
        )
    else:
        assert (model.encoder.num_layers, model.decoder.num_layers) == (2, 2)
        assert model.backbone.stage_blocks == [2, 4, 6, 2]
    weights = cut(name, code).state_dict()  # whose predictions are compared above
    assert plain.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize('name', ['rtmdet', 'dino'])
def test_sub_networks_share_stages(name):
    """The last letter of the backbone and those of both parts, in eight codes: five stages run instead of 32."""
    detector, codes = detector_of(name), SkipConfig.all(detector_of(name).backbone.letter_groups)[:8]
    calls = []
    handles = [stage.register_forward_hook(lambda *_: calls.append(0)) for stage in detector.backbone.stages]
    inputs = data(name)['inputs']

    def feats(code):
        with detector.backbone.using_skip(code), torch.no_grad():
            return detector.extract_feat(inputs)

    alone = [feats(code) for code in codes]
    assert len(calls) == 4 * len(codes)
    calls.clear()
    with sharing(detector):
        for code, expected in zip(codes, alone):
            assert all(map(torch.equal, feats(code), expected))
    for handle in handles:
        handle.remove()
    assert len(calls) == 3 + 2


@pytest.mark.parametrize('name', WRITTEN)
def test_config_is_what_it_says(name, elsewhere):
    (path,) = (ROOT / 'configs').glob(f'{name}_adn_*.py')
    cfg = load_config(str(path))
    assert [str(code) for code in choose_codes(cfg, None)] == ['FFFF-F-F']
    assert len(choose_codes(cfg, 'all')) == 64 and str(*choose_codes(cfg, 'ttfftf')) == 'TTFF-T-F'
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks == ['EMAHook', 'PipelineSwitchHook'] * ('rtmdet' in name) + ['SkipAwareDistillationHook']
    if name == 'rtmdet_s':
        init_default_scope('mmdet')
        with torch.device('meta'):
            backbone = DETECTORS.build(cfg.model).backbone
        assert [stage.num_mandatory for stage in backbone.stages] == [1, 1, 1, 1] and str(backbone.skip) == 'FFFF-F-F'


@cache
def stock_on_an_any_depth_backbone(name):
    model = stock_config_of(name)
    model.backbone.type = ADAPTIVE[model.backbone.type]
    init_default_scope('mmdet')
    with torch.device('meta'):
        return DETECTORS.build(model)


@pytest.mark.parametrize(
    'name, part, reason',
    [
        ('rtmdet', dict(of='neck', keep=2), 'SkippableCSP of neck: keep should be from 0 to 1, as there are 2 items'),
        ('rtmdet', dict(of='bbox_head'), 'SkippableCSP of bbox_head: RTMDetSepBNHead has no CSP layers'),
        ('dino', dict(of='encoder', keep=3), 'SkippableLayers of encoder: keep should be from 1 to 2'),
        ('dino', dict(of='neck'), 'SkippableLayers of neck: ChannelMapper does not iterate over its layers alone'),
        ('dab-detr', dict(of='decoder'), 'DABDetrTransformerDecoder does not iterate over its layers alone'),
        ('detr', dict(of='encoder', keep=2, num_cp=2), 'SkippableLayers of encoder cannot be skipped under .*num_cp'),
    ],
)
def test_parts_that_are_refused(name, part, reason):
    detector = stock_on_an_any_depth_backbone(name)
    if 'num_cp' in part:  # mmdet needs fairscale for it
        detector.encoder.num_cp = part.pop('num_cp')
    kind = SkippableCSP if name == 'rtmdet' else SkippableLayers
    with pytest.raises(UserError, match=reason) as error:
        kind(**part).attach(detector, detector.backbone)
    assert '\n' not in str(error.value)
