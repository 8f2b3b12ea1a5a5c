"""Sequential mode: the joint mode's gradients, from one pass's activations at a time."""

import copy
import sys

import pytest
import torch
from tiny import DETECTORS, batch, build, tiny_config

from adn_mmdet.distillation import SelfDistillation
from adn_mmdet.distillation.sequential import backpropagated


def step(model, data, scale=1.0, **settings):
    """Logged losses and gradients of one step, whose loss is multiplied by ``scale``."""
    model = copy.deepcopy(model)
    SelfDistillation(model, **settings).attach()
    torch.manual_seed(0)  # the RoI samplers are random
    loss, log = model.parse_losses(model(**data, mode='loss'))
    (scale * loss).backward()
    return log, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize(
    'settings', [{}, dict(gt_weight=0.0), dict(prediction_weight=1.0, feature='std_spatial')], ids=str
)
def test_gradients_are_the_joint_ones(name, settings, monkeypatch):
    ops = sys.modules['mmcv.ops.nms'].ext_module
    nms = ops.nms  # which has no float64
    in_float32 = lambda boxes, scores, **kwargs: nms(boxes.float(), scores.float(), **kwargs)  # noqa: E731
    monkeypatch.setattr(ops, 'nms', in_float32)
    model = build(tiny_config(name, frozen_stages=1, norm_eval=True)).train().double()
    data = batch(model, with_mask=name == 'mask_rcnn')
    data['inputs'] = data['inputs'].double()
    log, expected = step(model, data, **settings)
    own_log, found = step(model, data, mode='sequential', **settings)
    assert own_log.keys() == log.keys() and found.keys() == expected.keys()
    for key, value in log.items():
        assert torch.allclose(own_log[key], value, rtol=1e-9), key
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-9, atol=1e-9 * value.abs().max().item()), key


def test_what_comes_after_scales_the_gradients():
    # As gradient accumulation and a gradient scaler do.
    model = build(tiny_config(norm_eval=True)).train()
    data = batch(model)
    _, plain = step(model, data, mode='sequential')
    _, scaled = step(model, data, scale=0.25, mode='sequential')
    assert all(torch.allclose(scaled[key], 0.25 * value, atol=1e-7) for key, value in plain.items())


def test_loss_scale_keeps_small_gradients_of_half_precision():
    # The gradient of x is 1e-9, below float16's smallest number, and so is that of the product before it.
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)

    def gradient(loss_scale):
        half = (layer.weight * 1.0).half()  # its gradient passes through float16
        losses = backpropagated({'loss': half.float() * 1e-9}, layer, loss_scale)
        return torch.autograd.grad(losses['loss'], layer.weight)[0].item()

    assert gradient(1.0) == 0
    assert gradient(2.0**16) == pytest.approx(1e-9, rel=1e-2)


def test_running_statistics_are_the_joint_ones():
    model = build(tiny_config()).train()
    data = batch(model)
    models = [copy.deepcopy(model) for _ in range(2)]
    for one, mode in zip(models, ('joint', 'sequential')):
        SelfDistillation(one, mode=mode).attach()
        torch.manual_seed(0)
        one.parse_losses(one(**data, mode='loss'))[0].backward()
    joint, sequential = (one.state_dict() for one in models)
    assert all(torch.equal(sequential[key], value) for key, value in joint.items())
