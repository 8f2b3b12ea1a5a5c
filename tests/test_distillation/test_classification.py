"""Distillation of mmpretrain's ImageClassifier: what is compared, and the losses, by hand."""

import copy

import pytest
import torch
from classifiers import classifier
from mmengine.registry import MODELS, init_default_scope
from tiny import build, tiny_config

from adn_mmdet import UserError
from adn_mmdet.distillation import DistillationSettings, SelfDistillation
from adn_mmdet.distillation.losses import softmax_kl, top_k_kl

NUM_CLASSES, STAGES = 6, ('stage1', 'stage2', 'stage3', 'stage4')
PRINTED = dict(gt_weight=0.0, prediction_weight=1.0)  # Algorithm 1
AUTHORS = dict(gt_weight=0.0, prediction_weight=1.0, top_k=4, levels=(0, 1, 2))
TRUTH = dict(alpha=0.3, gt_weight=0.5, kd_weight=2.0, prediction_weight=3.0)


def images(model, size=32):
    """Four images of noise with labels, preprocessed as a training does."""
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(0)
    inputs = list(torch.randint(256, (4, 3, size, size), dtype=torch.uint8, generator=generator))
    samples = [DataSample().set_gt_label(label) for label in (0, 5, 2, 1)]
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True)


def kl(p_logits, q_logits):
    """Mean over rows, written out."""
    p, q = torch.softmax(p_logits, -1), torch.softmax(q_logits, -1)
    return (p * (p / q).log()).sum(-1).mean()


def outputs(model, inputs, code):
    """Of one pass: the pooled output of each stage, and the logits."""
    feats = []
    handles = [s.register_forward_hook(lambda *a: feats.append(a[2].mean((2, 3)))) for s in model.backbone.stages]
    with model.backbone.using_skip(code):
        logits = model(inputs)
    for handle in handles:
        handle.remove()
    return feats, logits


@pytest.mark.parametrize('mode', ['joint', 'sequential'])
@pytest.mark.parametrize('settings', [PRINTED, AUTHORS, TRUTH], ids=['printed', 'authors', 'truth'])
def test_losses_are_those_of_the_formula(settings, mode):
    model = classifier()
    data = images(model)
    (super_feats, p), (base_feats, q) = (outputs(model, data['inputs'], code) for code in ('FFFF', 'TTTT'))
    labels = torch.tensor([0, 5, 2, 1])
    SelfDistillation(model, DistillationSettings(mode=mode, **settings)).attach()
    losses = model(**data, mode='loss')
    alpha, gt_weight = settings.get('alpha', 0.5), settings['gt_weight']
    expected = {'super.loss': alpha * torch.nn.functional.cross_entropy(p, labels)}
    if gt_weight:
        expected['base.loss'] = (1 - alpha) * gt_weight * torch.nn.functional.cross_entropy(q, labels)
    for index in settings.get('levels', range(4)):
        weight = (1 - alpha) * settings.get('kd_weight', 1.0)
        expected[f'kd.loss_{STAGES[index]}'] = weight * kl(super_feats[index], base_feats[index])
    if 'top_k' in settings:
        order = p.argsort(descending=True)[:, : settings['top_k']]
        p, q = p.gather(1, order), q.gather(1, order)
    expected['kd.loss_cls'] = (1 - alpha) * settings['prediction_weight'] * kl(p, q)
    distillation = sum(value for name, value in expected.items() if name.startswith('kd.'))
    expected['kd.to_task'] = distillation / (expected['super.loss'] + expected.get('base.loss', 0))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(losses[name], value, rtol=1e-4, atol=1e-7) and value > 0, name
    total, _ = model.parse_losses(losses)
    assert torch.allclose(total, sum(value for name, value in losses.items() if 'loss' in name))


def test_kl_of_the_likeliest_classes_by_hand():
    # The super-net's two likeliest of three classes are 2 and 0, with odds of 3 to 1; the base-net has 1 to 1 there.
    super_logits = torch.tensor([[0.0, -1.0, 1.0986123]])
    base_logits = torch.tensor([[0.5, 9.0, 0.5]], requires_grad=True)
    loss = top_k_kl(super_logits, base_logits, 2)
    assert loss.item() == pytest.approx(0.1308121, rel=1e-5)  # 3/4·log(3/2) + 1/4·log(1/2)
    loss.backward()
    assert base_logits.grad[0].tolist() == pytest.approx([0.25, 0.0, -0.25])  # q − p
    everything = kl(super_logits, base_logits.detach())
    for k in (None, 3, 500):
        assert torch.allclose(top_k_kl(super_logits, base_logits, k), everything)


@pytest.mark.parametrize('settings', [PRINTED, AUTHORS, TRUTH], ids=['printed', 'authors', 'truth'])
def test_sequential_gradients_are_the_joint_ones(settings):
    model = classifier().double()
    data, gradients = images(model), []
    data['inputs'] = data['inputs'].double()
    for mode in ('joint', 'sequential'):
        net = copy.deepcopy(model)
        SelfDistillation(net, DistillationSettings(mode=mode, **settings)).attach()
        net.parse_losses(net(**data, mode='loss'))[0].backward()
        assert not [name for name, p in net.named_parameters() if p.grad is None]  # DDP needs all of them
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, value in gradients[0].items():
        assert torch.allclose(gradients[1][name], value, rtol=1e-9, atol=1e-9 * value.abs().max().item()), name


def test_without_a_label_the_base_net_learns_from_the_super_net_alone():
    model = classifier()
    data = images(model)
    SelfDistillation(model, DistillationSettings(**PRINTED)).attach()
    losses = model(**data, mode='loss')
    sum(value for name, value in losses.items() if name.startswith('kd.loss')).backward()
    only_of_super = [p for block in model.backbone.skipped_blocks('TTTT') for p in block.parameters()]
    only_of_super += [p for norm in model.backbone.idle_norms('TTTT') for p in norm.parameters()]
    assert all(p.grad is None for p in only_of_super)  # the teacher's side
    assert all(p.grad is not None for norm in model.backbone.idle_norms('FFFF') for p in norm.parameters())


def test_mixup_and_cutmix_hit_the_batch_once(monkeypatch):
    from mmpretrain.models.utils.batch_augments import Mixup

    calls, mix = [], Mixup.mix
    monkeypatch.setattr(Mixup, 'mix', lambda self, *args: calls.append(args) or mix(self, *args))
    model = classifier(
        head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
        train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)], probs=[1.0, 0.0]),
    )
    data = images(model)
    assert len(calls) == 1 and 'gt_score' in data['data_samples'][0]
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    (_, p), (_, q) = (outputs(model, data['inputs'], code) for code in ('FFFF', 'TTTT'))
    SelfDistillation(model, DistillationSettings(kd_weight=0.0, **PRINTED)).attach()
    losses = model(**data, mode='loss')
    assert len(calls) == 1 and all(inputs is data['inputs'] for inputs in seen) and len(seen) == 4
    # The labels' smoothing is in the cross-entropy, and not in what the base-net learns from.
    targets = torch.stack([sample.gt_score for sample in data['data_samples']])
    smooth = 0.9 * targets + 0.1 / NUM_CLASSES
    assert torch.allclose(losses['super.loss'], -0.5 * (smooth * p.log_softmax(-1)).sum(-1).mean(), rtol=1e-5)
    assert torch.allclose(losses['kd.loss_cls'], 0.5 * kl(p, q), rtol=1e-4)


def test_plain_classifier_after_detach_and_in_other_modes():
    model = classifier(skip='TFFF')
    data = images(model)
    plain, predicted = model(**data, mode='loss'), model(data['inputs'])
    distillation = SelfDistillation(model, DistillationSettings(**AUTHORS))
    distillation.attach()
    assert torch.equal(model(data['inputs']), predicted)
    with model.backbone.using_skip('FFFF'):
        alone = 0.5 * type(model).forward(model, **data, mode='loss')['loss']
    assert torch.equal(model(**data, mode='loss')['super.loss'], alone)
    assert str(model.backbone.resolve_skip()) == 'TFFF'
    copy.deepcopy(model)  # fails if a feature with a graph is held anywhere
    distillation.detach()
    assert torch.equal(model(**data, mode='loss')['loss'], plain['loss'])
    assert not any(module._forward_hooks for module in model.modules())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match=r'0 \(stage1\), 1 \(stage2\), 2 \(stage3\), 3 \(stage4\), but got \[4\]'):
        SelfDistillation(classifier(), DistillationSettings(levels=[4]))
    with pytest.raises(UserError, match="top_k=500 is of a classifier's logits, which FasterRCNN has not"):
        SelfDistillation(build(tiny_config()), DistillationSettings(prediction_weight=1.0, top_k=500))
    headless = classifier()
    headless.head = None
    with pytest.raises(UserError, match='ImageClassifier cannot be distilled: it should be .* with a head'):
        SelfDistillation(headless)


def network(name, **backbone):
    """A small classifier on another of the paper's networks."""
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    head = dict(type='LinearClsHead', num_classes=NUM_CLASSES, in_channels=backbone.pop('channels'))
    neck = None if name == 'AdaptiveDepthViT' else dict(type='GlobalAveragePooling')
    backbone = dict(type=name, **backbone)
    model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # of norms, so that both sets differ
            parameter.data += 0.5 * torch.randn(parameter.shape)
    return model


NETWORKS = {
    'AdaptiveDepthMobileNetV2': dict(channels=1280, widen_factor=0.25, out_indices=(7,), norm_eval=True),
    'AdaptiveDepthViT': dict(
        channels=16, arch=dict(embed_dims=16, num_heads=2, num_layers=12, feedforward_channels=32),
        img_size=64, patch_size=16,
    ),
    'AdaptiveDepthSwin': dict(
        channels=64, arch=dict(embed_dims=8, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8]), img_size=64, window_size=2,
        drop_path_rate=0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize('mode', ['joint', 'sequential'])
@pytest.mark.parametrize('name', NETWORKS)
def test_other_networks_are_compared_at_the_end_of_each_stage(name, mode):
    model = network(name, **NETWORKS[name])
    data = images(model, 64)
    data['inputs'] = data['inputs'] / 128 - 1
    base_net = 'T' * model.backbone.num_stages
    feats, logits = {}, {}
    for code in (base_net.replace('T', 'F'), base_net):
        ends = []  # the output of the last block of each letter that runs, or of what holds it
        for path in model.backbone.sub_paths:
            blocks = [*path.mandatory, *path.skippable]
            order = [module for module in model.backbone.modules() if module in blocks]
            first = order.index(path.skippable[0])  # what a letter governs beyond its blocks comes after them
            ends.append(path.skippable[-1] if 'F' in code else order[first - 1])
        found = {}
        handles = [end.register_forward_hook(lambda m, _, out, found=found: found.update({m: out})) for end in ends]
        with model.backbone.using_skip(code), torch.no_grad():
            logits[code] = model(data['inputs'])
        for handle in handles:
            handle.remove()
        feats[code] = [found[end].mean((2, 3)) if found[end].dim() == 4 else found[end].mean(1) for end in ends]
    SelfDistillation(model, DistillationSettings(mode=mode, **PRINTED)).attach()
    losses = model(**data, mode='loss')
    for index, (p, q) in enumerate(zip(*feats.values()), 1):
        assert torch.allclose(losses.pop(f'kd.loss_stage{index}'), 0.5 * softmax_kl(p, q), rtol=1e-4), index
    assert torch.allclose(losses['kd.loss_cls'], 0.5 * softmax_kl(*logits.values()), rtol=1e-4)
    assert losses.keys() == {'super.loss', 'kd.loss_cls', 'kd.to_task'}
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]  # DDP needs all of them
