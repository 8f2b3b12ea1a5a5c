"""Sequential mode: the joint mode's gradients, from one pass's activations at a time."""

import copy
import gc
import sys

import pytest
import torch
from tiny import DETECTORS, batch, build, tiny_config
from torch.utils.checkpoint import checkpoint

from adn_mmdet import UserError
from adn_mmdet.distillation import DistillationSettings, SelfDistillation
from adn_mmdet.distillation.sequential import backpropagated


def step(model, data, scale=1.0, **settings):
    """Logged losses and gradients of one step, whose loss is multiplied by ``scale``."""
    model = copy.deepcopy(model)
    SelfDistillation(model, DistillationSettings(**settings)).attach()
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


def live_storages():
    """Storages of all tensors that there are, by address, in bytes; other tests may have left sparse or fake ones."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize('levels, kept', [(None, [32, 16, 8, 4]), ([1], [16])])
def test_only_what_is_compared_is_held_through_the_base_pass(levels, kept):
    model = build(tiny_config(norm_eval=True, frozen_stages=1)).train()
    data = batch(model, size=128)
    distillation = SelfDistillation(model, DistillationSettings(mode='sequential', levels=levels))
    distillation.attach()
    held = []
    model.backbone.register_forward_pre_hook(lambda *_: held.append(live_storages()))
    model(**data, mode='loss')
    before, between = held
    losses_and_gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    features = sum(2 * 16 * size * size * 4 for size in kept)  # two images, 16 channels, float32
    found = sum(nbytes for address, nbytes in between.items() if address not in before)
    assert features <= found - losses_and_gradients <= features + 4096, (found - losses_and_gradients, features)


class Checkpointed(torch.nn.Module):
    """A neck that computes its activations again in the backward."""

    def __init__(self, neck, use_reentrant):
        super().__init__()
        self.neck, self.use_reentrant = neck, use_reentrant

    def forward(self, inputs):
        return checkpoint(lambda *feats: self.neck(feats), *inputs, use_reentrant=self.use_reentrant)


def test_reentrant_checkpointing_outside_the_backbone_is_refused():
    model = build(tiny_config(norm_eval=True)).train()
    data, neck = batch(model), model.neck
    _, expected = step(model, data)
    for use_reentrant, mode in ((True, 'joint'), (False, 'joint'), (False, 'sequential')):
        model.neck = Checkpointed(neck, use_reentrant)
        _, found = step(model, data, mode=mode)
        for name, value in expected.items():
            same = found[name.replace('neck.', 'neck.neck.')]
            assert torch.allclose(same, value, rtol=1e-4, atol=1e-5 * value.abs().max().item()), name
    model.neck = Checkpointed(neck, use_reentrant=True)
    with pytest.raises(UserError, match="mode='sequential' cannot go back through reentrant activation checkpointing"):
        step(model, data, mode='sequential')


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
        SelfDistillation(one, DistillationSettings(mode=mode)).attach()
        torch.manual_seed(0)
        one.parse_losses(one(**data, mode='loss'))[0].backward()
    joint, sequential = (one.state_dict() for one in models)
    assert all(torch.equal(sequential[key], value) for key, value in joint.items())
