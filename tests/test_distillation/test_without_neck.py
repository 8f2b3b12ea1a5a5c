"""A detector without a neck: the outputs of its backbone are distilled."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from tiny import TINY_BACKBONE, batch, build

from adn_mmdet import SkipAwareDistillationHook, UserError, extract_feats
from adn_mmdet.distillation import FEATURE_LOSSES, DistillationSettings, SelfDistillation

WIDTH, STRIDES = 16, ('p2', 'p3', 'p4', 'p5')


def maskformer(**backbone):
    """mmdet's MaskFormer, narrow, on an any-depth backbone."""
    cfg = Config.fromstring("_base_ = 'mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py'", '.py')
    cfg.model.backbone.update(TINY_BACKBONE | dict(type='AdaptiveDepthResNet', norm_eval=True) | backbone)
    head = cfg.model.panoptic_head
    attention, ffn = dict(embed_dims=WIDTH, num_heads=2), dict(embed_dims=WIDTH, feedforward_channels=WIDTH)
    head.update(
        in_channels=[32, 64, 128, 256],
        feat_channels=WIDTH,
        out_channels=WIDTH,
        num_things_classes=3,
        num_stuff_classes=0,
        num_queries=5,
        positional_encoding=dict(num_feats=WIDTH // 2, normalize=True),
    )
    decoder = head.pixel_decoder
    decoder.update(norm_cfg=dict(type='GN', num_groups=4), positional_encoding=head.positional_encoding)
    for transformer in (decoder.encoder, head.transformer_decoder):
        transformer.num_layers = 1
        layer = transformer.layer_cfg
        for name in layer.keys() - {'ffn_cfg'}:
            layer[name].update(attention, dropout=0.0)
        layer.ffn_cfg.update(ffn, ffn_drop=0.0)
    head.loss_cls.class_weight = [1.0] * 3 + [0.1]
    cfg.model.panoptic_fusion_head.update(num_things_classes=3, num_stuff_classes=0)
    return build(cfg)


@pytest.mark.parametrize('mode', ['joint', 'sequential'])
@pytest.mark.parametrize('gt_weight', [0.5, 0.0])
def test_losses_are_those_of_the_formula(mode, gt_weight):
    model = maskformer().train()
    data = batch(model)
    expected = {}
    for net, code in (('super', 'FFFF'), ('base', 'TTTT')):
        with model.backbone.using_skip(code):
            expected[net] = model(**copy.deepcopy(data), mode='loss')
    feats = {code: model.backbone(data['inputs'], code) for code in ('FFFF', 'TTTT')}
    own = extract_feats(model, data['inputs'], feats)
    assert all(torch.equal(*pair) for code in feats for pair in zip(own[code], feats[code], strict=True))
    settings = DistillationSettings(alpha=0.3, gt_weight=gt_weight, kd_weight=2.0, feature='spatial', mode=mode)
    SelfDistillation(model, settings).attach()
    losses = model(**data, mode='loss')
    for index, level in enumerate(STRIDES):
        kl = FEATURE_LOSSES['spatial'](feats['FFFF'][index], feats['TTTT'][index], 1.0)
        assert torch.equal(losses.pop(f'kd.loss_{level}'), 0.7 * 2.0 * kl) and kl > 0
    losses.pop('kd.to_task')
    for net, weight in (('super', 0.3), ('base', 0.7 * gt_weight)):
        for key, value in expected[net].items() if weight else ():
            assert torch.allclose(losses.pop(f'{net}.{key}'), weight * value, rtol=1e-6), (net, key)
    assert not losses


def test_sequential_gradients_are_the_joint_ones():
    model = maskformer(norm_cfg=dict(type='BN', requires_grad=True)).train()
    data, gradients = batch(model), []
    for mode in ('joint', 'sequential'):
        net = copy.deepcopy(model)
        SelfDistillation(net, DistillationSettings(mode=mode)).attach()
        net.parse_losses(net(**copy.deepcopy(data), mode='loss'))[0].backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any('_skip' in name for name in gradients[0]) and any('panoptic_head' in name for name in gradients[0])
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()), name


def test_it_is_logged_and_predictions_are_refused(caplog):
    runner = SimpleNamespace(model=maskformer(), logger=logging.getLogger('test'))
    with caplog.at_level('INFO'):
        SkipAwareDistillationHook().before_train(runner)
    names = ', '.join(f'kd.loss_{level}' for level in STRIDES)
    assert caplog.messages == [f'There is no neck: the outputs of the backbone are distilled ({names})']
    with pytest.raises(UserError, match='MaskFormer has no head: set prediction_weight=0'):
        SkipAwareDistillationHook(prediction_weight=1.0).before_train(runner)
