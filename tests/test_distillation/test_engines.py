"""Every engine of a training takes the step of the formula, which steps.py writes out."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from steps import SETTINGS, furthest, gradients, raw_batch, reference_loss, watched_sgd
from tiny import DETECTORS, build, tiny_config

from adn_mmdet import SkipAwareDistillationHook, extract_feats
from adn_mmdet.distillation import DistillationSettings, SelfDistillation

LR = 0.1
MODES = [{}, dict(mode='sequential')]


def attached_and_plain(name, settings=None, **backbone):
    model = build(tiny_config(name, **backbone)).train()
    plain = copy.deepcopy(model)
    SelfDistillation(model, DistillationSettings(**SETTINGS | (settings or {}))).attach()
    return model, plain


def train(model, data, wrapper=OptimWrapper, **options):
    """One iteration, as the Runner does it: what its optimiser step began with, and its log."""
    optimizer, records = watched_sgd(model, lr=LR)
    return records, model.train_step(data, wrapper(optimizer=optimizer, **options))


def check_step(model, records, expected, tolerance=1e-6):
    """One step was taken, SGD's, along the gradients that are expected."""
    (record,) = records
    assert record.keys() == expected.keys()
    parameters = dict(model.named_parameters())
    for name, (weight, gradient) in record.items():
        assert furthest(gradient, expected[name]) <= tolerance, name
        assert torch.equal(parameters[name], weight.add(gradient, alpha=-LR)), name


@pytest.mark.parametrize('settings', MODES, ids=str)
@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('num_items', [None, [0, 0], [0, 2]], ids=['objects', 'none', 'in one image'])
def test_step_is_that_of_the_formula(name, settings, num_items):
    model, plain = attached_and_plain(name, settings)
    records, log = train(model, raw_batch(name, 0, num_items))
    loss = reference_loss(plain, raw_batch(name, 0, num_items))
    loss.backward()
    assert torch.isfinite(loss) and log['loss'].item() == pytest.approx(loss.item(), rel=1e-6)
    assert all(gradient.isfinite().all() for _, gradient in records[0].values())
    check_step(model, records, gradients(plain))


class Bfloat16OptimWrapper(OptimWrapper):
    """AmpOptimWrapper's context, for the CPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


@pytest.mark.parametrize('settings', MODES, ids=str)
def test_bfloat16(settings):
    name = 'retinanet'  # mmcv's RoIAlign has no bfloat16 on the CPU
    model, plain = attached_and_plain(name, settings)
    dtypes = []
    model.neck.register_forward_hook(lambda _module, _inputs, output: dtypes.append(output[0].dtype))
    size = 128  # over a 1×1 map, oneDNN's bfloat16 leaves garbage in the weight gradient of a 3×3 convolution
    records, log = train(model, raw_batch(name, 0, size=size), wrapper=Bfloat16OptimWrapper)
    assert dtypes == [torch.bfloat16] * 2 and log['kd.loss_p3'].dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        loss = reference_loss(plain, raw_batch(name, 0, size=size))
    loss.backward()
    assert log['loss'].item() == pytest.approx(loss.item(), rel=1e-6)
    # The joint passes share a bfloat16 copy of the weights, which rounds the sum of their gradients.
    check_step(model, records, gradients(plain), 1e-2 if settings else 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='AmpOptimWrapper and GradScaler in float16 need a GPU')
@pytest.mark.parametrize('settings', MODES, ids=str)
def test_float16_with_a_gradient_scaler(settings):
    name = 'mask_rcnn'
    model, plain = (net.cuda() for net in attached_and_plain(name, settings, norm_eval=True))
    model.forward.loss_scale = scale = 16.0  # more would overflow in these untrained nets
    records, log = train(model, raw_batch(name, 0), wrapper=AmpOptimWrapper, loss_scale=scale, dtype='float16')
    assert log['kd.loss_p2'].dtype == torch.float32
    with torch.autocast('cuda', torch.float16):
        loss = reference_loss(plain, raw_batch(name, 0))
    (scale * loss).backward()
    assert log['loss'].item() == pytest.approx(loss.item(), rel=1e-3)
    check_step(model, records, {key: gradient / scale for key, gradient in gradients(plain).items()}, 2e-2)


@pytest.mark.parametrize('settings', MODES, ids=str)
def test_accumulated_batches_are_averaged(settings):
    name = 'faster_rcnn'
    model, plain = attached_and_plain(name, settings)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer, records = watched_sgd(model, lr=LR)
    wrapper = OptimWrapper(optimizer, accumulative_counts=2)
    model.train_step(raw_batch(name, 0), wrapper)
    assert not records and all(torch.equal(weight, before[key]) for key, weight in model.named_parameters())
    model.train_step(raw_batch(name, 1), wrapper)
    for seed in (0, 1):
        (reference_loss(plain, raw_batch(name, seed)) / 2).backward()
    check_step(model, records, gradients(plain))


def test_clipping_is_of_the_joint_gradient():
    name = 'faster_rcnn'
    model, plain = attached_and_plain(name)
    reference_loss(plain, raw_batch(name, 0)).backward()
    norm = torch.cat([gradient.flatten() for gradient in gradients(plain).values()]).double().norm()
    records, _ = train(model, raw_batch(name, 0), clip_grad=dict(max_norm=norm.item() / 4))
    check_step(model, records, {key: gradient / 4 for key, gradient in gradients(plain).items()})


def test_average_of_the_joint_weights():
    name, momentum = 'faster_rcnn', 0.25
    model = build(tiny_config(name)).train()
    runner = SimpleNamespace(model=model, iter=0, epoch=0)
    ema, distillation = EMAHook(momentum=momentum), SkipAwareDistillationHook()
    ema.before_run(runner)
    distillation.before_train(runner)
    average = ema.ema_model.module
    assert 'forward' not in vars(average) and 'forward' in vars(model)
    optimizer, records = watched_sgd(model, lr=LR)
    for seed in range(3):
        model.train_step(raw_batch(name, seed), OptimWrapper(optimizer))
        ema.after_train_iter(runner, seed)
    first, second = ({key: weight for key, (weight, _) in record.items()} for record in records[1:])
    third = dict(model.named_parameters())
    for key, weight in average.named_parameters():
        mean = (1 - momentum) * ((1 - momentum) * first[key] + momentum * second[key]) + momentum * third[key]
        assert furthest(weight, mean) <= 1e-6, key
    model.load_state_dict(average.state_dict())
    images = torch.rand(1, 3, 64, 64)
    feats = [extract_feats(net.eval(), images, ['TTTT'])['TTTT'] for net in (average, model)]
    assert all(torch.equal(*pair) for pair in zip(*feats))
    with average.backbone.using_skip('TTTT'):
        assert len(average.test_step(raw_batch(name, 0))) == 2


@pytest.mark.parametrize('settings', MODES, ids=str)
def test_activation_checkpointing_changes_nothing(settings):
    name = 'faster_rcnn'
    losses, steps = [], []
    for with_cp in (False, True):
        model, _ = attached_and_plain(name, settings, with_cp=with_cp, norm_eval=True)
        records, log = train(model, raw_batch(name, 0))
        losses.append(log['loss'])
        steps.append({key: gradient for key, (_, gradient) in records[0].items()})
    assert torch.equal(*losses) and steps[0].keys() == steps[1].keys()
    assert all(torch.equal(gradient, steps[1][key]) for key, gradient in steps[0].items())


@pytest.mark.parametrize('norm_eval', [True, False])
def test_running_statistics_follow_every_pass_that_runs_their_norm(norm_eval):
    name = 'faster_rcnn'
    model, _ = attached_and_plain(name, norm_eval=norm_eval)
    norms = {key: norm for key, norm in model.backbone.named_modules() if isinstance(norm, torch.nn.BatchNorm2d)}
    before = copy.deepcopy(norms)
    inputs = {key: [] for key in norms}
    for key, norm in norms.items():
        norm.register_forward_pre_hook(lambda _norm, args, key=key: inputs[key].append(args[0].detach()))
    train(model, raw_batch(name, 0))
    for key, norm in norms.items():
        mean, var = before[key].running_mean, before[key].running_var
        shared = key == 'bn1' or 'downsample' in key  # these run in both passes
        assert len(inputs[key]) == (2 if shared else 1), key
        for x in inputs[key] if not norm_eval else ():
            mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
            var = 0.9 * var + 0.1 * x.var((0, 2, 3), unbiased=True)
        assert norm.num_batches_tracked == (0 if norm_eval else len(inputs[key])), key
        assert furthest(norm.running_mean, mean) <= (0 if norm_eval else 1e-5), key
        assert furthest(norm.running_var, var) <= (0 if norm_eval else 1e-5), key


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages_stay_and_all_else_gets_a_gradient(frozen_stages):
    name = 'faster_rcnn'
    model, _ = attached_and_plain(name, frozen_stages=frozen_stages)
    before = copy.deepcopy(model.state_dict())
    records, _ = train(model, raw_batch(name, 0))
    frozen = tuple(f'backbone.layer{stage}.' for stage in range(1, frozen_stages + 1))
    frozen += ('backbone.conv1.', 'backbone.bn1.') if frozen_stages >= 0 else ()
    expected = {key for key, _ in model.named_parameters() if not key.startswith(frozen)}
    assert records[0].keys() == expected  # DDP would find no parameter unused
    assert expected == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    for key, value in model.state_dict().items():
        if key.startswith('backbone.'):  # second sets and running statistics included
            assert torch.equal(value, before[key]) == key.startswith(frozen), key
