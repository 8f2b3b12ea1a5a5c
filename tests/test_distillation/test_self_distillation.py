import copy
import pickle

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from tiny import DETECTORS, batch, build, tiny_config

from adn_mmdet import UserError, extract_feats, set_skip
from adn_mmdet.distillation import FEATURE_LOSSES, DistillationSettings, SelfDistillation
from adn_mmdet.distillation.compared import pyramid_levels


def flat(losses):
    """A loss dict as tensors: mmdet's losses are tensors or lists of them."""
    return {k: sum(v) if isinstance(v, (list, tuple)) else v for k, v in losses.items()}


def attached(detector, **settings):
    distillation = SelfDistillation(detector, DistillationSettings(**settings))
    distillation.attach()
    return distillation


def seeded_loss(detector, data):
    torch.manual_seed(0)  # the RoI samplers are random
    return flat(detector(**data, mode='loss'))


def small(detector='faster_rcnn', **backbone):
    # Without running statistics to move, passes can be repeated to the bit.
    return build(tiny_config(detector, norm_eval=True, **backbone)).train()


@pytest.mark.parametrize(
    'name, feature',
    [*(('faster_rcnn', feature) for feature in FEATURE_LOSSES), *((name, 'spatial') for name in DETECTORS[1:])],
)
def test_losses_are_those_of_the_formula(name, feature):
    model = small(name)
    data = batch(model, with_mask=name == 'mask_rcnn')
    torch.manual_seed(0)
    expected = {}
    for net, code in (('super', 'FFFF'), ('base', 'TTTT')):
        set_skip(model, code)
        expected[net] = flat(model(**data, mode='loss'))
    set_skip(model, 'FFFF')
    feats = extract_feats(model, data['inputs'], ['FFFF', 'TTTT'])
    attached(model, alpha=0.3, gt_weight=0.5, kd_weight=2.0, temperature=3.0, feature=feature)
    losses = seeded_loss(model, data)
    levels = ('p3', 'p4', 'p5') if name == 'retinanet' else ('p2', 'p3', 'p4', 'p5')
    assert {k for k in losses if k.startswith('kd.loss')} == {f'kd.loss_{level}' for level in levels}
    for index, level in enumerate(levels):
        kl = FEATURE_LOSSES[feature](feats['FFFF'][index], feats['TTTT'][index], 3.0)
        assert torch.allclose(losses[f'kd.loss_{level}'], 0.7 * 2.0 * 9.0 * kl) and kl > 0
    for net, weight in (('super', 0.3), ('base', 0.35)):
        for key, value in expected[net].items():
            factor = weight if 'loss' in key else 1.0
            assert torch.allclose(losses[f'{net}.{key}'], factor * value, rtol=1e-6), key
    task = sum(v for k, v in losses.items() if k.startswith(('super.loss', 'base.loss')))
    kd = sum(v for k, v in losses.items() if k.startswith('kd.loss'))
    assert torch.allclose(losses['kd.to_task'], kd / task)
    assert len(losses) == len(levels) + 1 + sum(map(len, expected.values()))


def test_parse_losses_adds_up_what_is_logged():
    model = small()
    attached(model)
    total, log = model.parse_losses(model(**batch(model), mode='loss'))
    parts = [value for key, value in log.items() if 'loss' in key and key != 'loss']
    assert torch.allclose(total, sum(parts)) and 'super.acc' in log and 'base.acc' in log


def test_kl_trains_only_the_base_net_side():
    model = small()
    data = batch(model)
    attached(model, gt_weight=0.0)
    losses = model(**data, mode='loss')
    sum(value for key, value in losses.items() if key.startswith('kd.loss')).backward()
    skipped = [p for block in model.backbone.skipped_blocks('TTTT') for p in block.parameters()]
    own = [p for norm in model.backbone.idle_norms('TTTT') for p in norm.parameters()]
    assert all(p.grad is None for p in (*skipped, *own))  # what only the super-net runs
    assert all(p.grad is not None for norm in model.backbone.idle_norms('FFFF') for p in norm.parameters())


@pytest.mark.parametrize('feature', FEATURE_LOSSES)
def test_kl_falls_in_training(feature):
    model = small()
    data = batch(model)
    attached(model, gt_weight=0.0, kd_weight=100.0, feature=feature, alpha=0.1)
    optimizer = torch.optim.Adam([p for n, p in model.backbone.named_parameters() if '_skip' in n], lr=3e-3)
    history = []
    for _ in range(6):
        kl = sum(v for k, v in seeded_loss(model, data).items() if k.startswith('kd.loss'))
        history.append(kl.item())
        optimizer.zero_grad()
        kl.backward()
        optimizer.step()
    assert 0 < history[-1] < 0.8 * history[0], history


def count_calls(model, names):
    calls = dict.fromkeys(names, 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(count(name))
    return calls


@pytest.mark.parametrize('gt_weight, heads', [(1.0, 2), (0.0, 1)])
def test_without_truth_the_base_net_runs_backbone_and_neck_only(gt_weight, heads):
    model = small()
    distillation = attached(model, gt_weight=gt_weight)
    calls = count_calls(model, ['backbone', 'neck', 'rpn_head', 'roi_head.bbox_head'])
    losses = model(**batch(model), mode='loss')
    assert calls == {'backbone': 2, 'neck': 2, 'rpn_head': heads, 'roi_head.bbox_head': heads}
    assert any(key.startswith('base.') for key in losses) == bool(gt_weight)
    distillation.detach()


def test_joint_training_without_distillation():
    model = small()
    attached(model, kd_weight=0.0)
    assert not any(key.startswith('kd.loss') for key in model(**batch(model), mode='loss'))


def test_ramp_scales_the_kl_alone():
    model = small()
    data = batch(model)
    distillation = attached(model)
    full = seeded_loss(model, data)
    distillation.kd_ramp = 0.25
    ramped = seeded_loss(model, data)
    for key, value in full.items():
        assert torch.allclose(ramped[key], (0.25 if key.startswith('kd.') else 1.0) * value), key


def test_skip_is_what_it_was_before_also_after_an_exception(monkeypatch):
    model = small(skip='TFFF')
    data = batch(model)
    attached(model)
    model(**data, mode='loss')
    assert str(model.backbone.resolve_skip()) == 'TFFF'
    for interruption in (ZeroDivisionError, KeyboardInterrupt):

        def fail(*_, interruption=interruption):
            raise interruption

        monkeypatch.setattr(model.roi_head, 'loss', fail)
        with pytest.raises(interruption):
            model(**data, mode='loss')
        assert str(model.backbone.resolve_skip()) == 'TFFF'
        assert not model.neck._forward_hooks
    monkeypatch.undo()
    copy.deepcopy(model)  # fails if a feature with a graph is held anywhere


def test_copies_after_a_step_train_themselves():
    model = small()
    data = batch(model)
    attached(model)
    sum(v for k, v in seeded_loss(model, data).items() if 'loss' in k).backward()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.forward.detector is other
        other.zero_grad()
        for key, value in seeded_loss(other, data).items():
            assert torch.equal(value, seeded_loss(model, data)[key]), key


def test_plain_detector_after_detach_and_in_other_modes():
    model = small()
    data = batch(model)
    plain = seeded_loss(model, data)
    predictions = model.eval()(**copy.deepcopy(data), mode='predict')[0].pred_instances
    distillation = attached(model)
    again = model(**copy.deepcopy(data), mode='predict')[0].pred_instances
    assert torch.equal(predictions.bboxes, again.bboxes)
    distillation.detach()
    distillation.detach()  # twice does no harm
    assert 'forward' not in vars(model)
    assert all(torch.equal(value, plain[key]) for key, value in seeded_loss(model.train(), data).items())


def test_another_wrapper_of_forward_is_called_and_stays():
    model = small()
    data, seen = batch(model), []

    def wrapper(*args, mode='tensor', **kwargs):
        seen.append((mode, str(model.backbone.resolve_skip())))
        return type(model).forward(model, *args, mode=mode, **kwargs)

    model.forward = wrapper
    plain = seeded_loss(model, data)
    distillation = attached(model)
    losses = seeded_loss(model, data)
    assert seen == [('loss', 'FFFF'), ('loss', 'FFFF'), ('loss', 'TTTT')]
    assert all(
        torch.equal(losses[f'super.{key}'], value * (0.5 if 'loss' in key else 1)) for key, value in plain.items()
    )
    distillation.detach()
    assert model.forward is wrapper
    distillation.attach()
    model.forward = outer = lambda *args, **kwargs: distillation(*args, **kwargs)  # put around it later
    distillation.detach()
    assert model.forward is outer
    assert all(torch.equal(value, plain[key]) for key, value in seeded_loss(model, data).items())


def test_one_distillation_at_a_time():
    model = small()
    first = attached(model)
    for other in (first, SelfDistillation(model)):
        with pytest.raises(UserError, match='FasterRCNN is distilled already: .*detach'):
            other.attach()
    first.detach()
    attached(model)


def test_every_parameter_gets_a_gradient():  # so that DDP needs no find_unused_parameters
    for settings in (dict(), dict(gt_weight=0.0), dict(kd_weight=0.0)):
        model = small('mask_rcnn')
        attached(model, **settings)
        sum(v.sum() for k, v in seeded_loss(model, batch(model)).items() if 'loss' in k).backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_attaching_through_wrappers():
    model = small()
    average = ExponentialMovingAverage(model)
    assert attached(average).detector is average.module


def test_pyramid_levels():
    levels = pyramid_levels(small('retinanet'))
    assert [level.name for level in levels] == ['p3', 'p4', 'p5', 'p6', 'p7']
    assert [level.has_stage for level in levels] == [True, True, True, False, False]
    assert [level.has_stage for level in pyramid_levels(small())] == [True, True, True, True, False]


def test_looking_for_levels_changes_nothing():
    model = build(tiny_config()).train()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    pyramid_levels(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]


def test_chosen_levels():
    model = small()
    attached(model, levels=(1, 4))
    losses = model(**batch(model), mode='loss')
    assert [key for key in losses if key.startswith('kd.loss')] == ['kd.loss_p3', 'kd.loss_p6']


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(levels=(0, 7)), r'0 \(p2\), 1 \(p3\), 2 \(p4\), 3 \(p5\), 4 \(p6\), but got \[0, 7\]'),
        (dict(levels=()), r'but got \[\]'),
        (dict(levels=(-1,)), r'but got \[-1\]'),
        (dict(alpha=1.5), 'alpha.*0 to 1, but got 1.5'),
        (dict(gt_weight=0, kd_weight=0), 'leaves the base-net untrained'),
        (dict(kd_weight=-1), 'but got 1.0, -1, 0.0'),
        (dict(feature='cosine'), "one of gap_channel, .*, std_l2, but got 'cosine'"),
        (dict(temperature=0), 'temperature should be positive, but got 0'),
    ],
    ids=str,
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SelfDistillation(small(), DistillationSettings(**settings))


def test_unfit_detectors_are_named():
    cfg = tiny_config()
    cfg.model.backbone.type = 'ResNet'
    del cfg.model.backbone['skip']
    with pytest.raises(UserError, match='FasterRCNN should have one adaptive-depth backbone.*found ResNet'):
        SelfDistillation(build(cfg))
