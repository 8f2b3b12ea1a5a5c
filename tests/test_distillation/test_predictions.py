import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from tiny import DETECTORS, batch, build, tiny_config

from adn_mmdet import UserError, extract_feats
from adn_mmdet.distillation import DistillationSettings, SelfDistillation
from adn_mmdet.distillation.losses import distribution_kl, relative_l1, sigmoid_kl, softmax_kl


def losses_of(model, data, **settings):
    distillation = SelfDistillation(model, DistillationSettings(**settings))
    distillation.attach()
    torch.manual_seed(0)  # the RoI samplers are random
    losses = model(**data, mode='loss')
    distillation.detach()
    return losses


def rows(levels, values):
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, values) for level in levels])


@pytest.mark.parametrize('gt_weight', [0.5, 0.0])
@pytest.mark.parametrize('name', DETECTORS)
def test_equal_to_the_heads_run_by_hand(name, gt_weight, monkeypatch):
    model = build(tiny_config(name, norm_eval=True)).train()
    data = batch(model, with_mask=name == 'mask_rcnn')
    feats = extract_feats(model, data['inputs'], ['FFFF', 'TTTT'])
    sampled = []
    if name != 'retinanet':
        sampler = model.roi_head.bbox_sampler
        sample = sampler.sample
        monkeypatch.setattr(sampler, 'sample', lambda *a, **k: sampled.append(sample(*a, **k)) or sampled[-1])
    losses = losses_of(model, data, alpha=0.3, gt_weight=gt_weight, prediction_weight=2.0, kd_weight=0.0)
    found = {key: value for key, value in losses.items() if key.startswith('kd.loss')}
    if name == 'retinanet':
        logits, boxes = zip(*(map(rows, model.bbox_head(feats[code]), (3, 4)) for code in ('FFFF', 'TTTT')))
        scores = logits[0].sigmoid().max(-1).values
        expected = {'kd.loss_cls': sigmoid_kl(*logits), 'kd.loss_bbox': relative_l1(*boxes, scores)}
    else:
        objectness = [rows(model.rpn_head(feats[code])[0], 1) for code in ('FFFF', 'TTTT')]
        rois = bbox2roi([result.priors for result in sampled[:2]])  # the super-net's: it runs first
        classes = [model.roi_head._bbox_forward(feats[code], rois)['cls_score'] for code in ('FFFF', 'TTTT')]
        expected = {'kd.loss_rpn_cls': sigmoid_kl(*objectness), 'kd.loss_cls': softmax_kl(*classes)}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert value > 0 and torch.allclose(found[key], 0.7 * 2.0 * value, rtol=1e-5), key
    assert not any(key.startswith('base.') for key in losses) or gt_weight


def test_no_gradient_reaches_what_only_the_super_net_runs():
    model = build(tiny_config(norm_eval=True)).train()
    losses = losses_of(model, batch(model), gt_weight=0.0, kd_weight=0.0, prediction_weight=1.0)
    sum(value for key, value in losses.items() if key.startswith('kd.loss')).backward()
    assert all(p.grad is None for block in model.backbone.skipped_blocks('TTTT') for p in block.parameters())
    assert all(p.grad is not None for norm in model.backbone.idle_norms('FFFF') for p in norm.parameters())


def test_images_without_objects():
    model = build(tiny_config('mask_rcnn', norm_eval=True)).train()
    losses = losses_of(model, batch(model, num_items=[0, 0]), prediction_weight=1.0)
    assert all(torch.isfinite(v).all() for v in losses.values() if isinstance(v, torch.Tensor))


def test_heads_without_comparable_logits_are_named():
    model = build(tiny_config())
    model.roi_head = torch.nn.Identity()
    with pytest.raises(UserError, match='FasterRCNN has RPNHead and Identity: set prediction_weight=0'):
        SelfDistillation(model, DistillationSettings(prediction_weight=1.0))
    model = build(tiny_config('retinanet'))
    del model.bbox_head
    with pytest.raises(UserError, match='RetinaNet has no head'):
        SelfDistillation(model, DistillationSettings(prediction_weight=1.0))


def test_boxes_as_distributions_and_as_numbers():
    """By hand; equal ones are 0 apart, and rows without a score do not count."""
    bins, others, scores = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.tensor([0.9, 0.8, 0.0])
    p, q = bins.softmax(-1), others.softmax(-1)
    by_hand = ((p * (p / q).log()).sum(-1).mean(-1) * scores).sum() / 1.7
    assert torch.allclose(distribution_kl(bins, others, scores), by_hand)
    numbers, apart = bins.flatten(1), bins.flatten(1).clone()
    apart[0] *= 1.5  # by half of itself
    share = 0.9 * numbers[0].abs().sum() / (scores * numbers.abs().sum(-1)).sum()
    assert torch.allclose(relative_l1(numbers, apart, scores), share / 2)
    apart[2] += 9
    assert torch.allclose(relative_l1(numbers, apart, scores), share / 2)
    assert distribution_kl(bins, bins, scores) == relative_l1(numbers, numbers, scores) == 0
