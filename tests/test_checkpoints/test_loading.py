import pytest
import torch
from tiny import build, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.checkpoints import load_for_testing, read_weights, require_fit

BASE_NET = [SkipConfig.base_net(4)]


@pytest.fixture(scope='module')
def detector():
    return build(tiny_config())


@pytest.fixture
def save(tmp_path, detector):
    def save(change=lambda weights: weights, wrap=lambda weights: {'state_dict': weights, 'meta': {}}):
        path = tmp_path / 'weights.pth'
        torch.save(wrap(change(dict(detector.state_dict()))), path)
        return path

    return save


@pytest.mark.parametrize('prefix', ['', 'module.', 'ema_'])
@pytest.mark.parametrize('wrap', [dict, lambda weights: {'state_dict': weights}], ids=['bare', 'mmengine'])
def test_prefixes_and_layouts(save, prefix, wrap):
    path = save(lambda weights: {prefix + key: value for key, value in weights.items()}, wrap)
    target = build(tiny_config())
    for parameter in target.parameters():
        parameter.data.zero_()
    load_for_testing(target, path, BASE_NET)
    saved = torch.load(path)
    saved = saved.get('state_dict', saved)
    assert all(torch.equal(value, saved[prefix + key]) for key, value in target.state_dict().items())


def test_ema_copies_beside_the_weights_are_left_out(save, detector):
    load_for_testing(detector, save(lambda weights: weights | {'ema_neck_weight': torch.zeros(1)}))


def without_skip_norms(weights):
    return {key: value for key, value in weights.items() if '_skip.' not in key}


def test_untrained_depths_are_refused_unless_asked_for(save, detector):
    path = save(without_skip_norms)
    with pytest.warns(UserWarning, match='27 skip-aware norms'):
        load_for_testing(detector, path, [SkipConfig.super_net(4)])
    with pytest.raises(UserError, match='TTTT would be tested untrained.*--allow-untrained'):
        load_for_testing(detector, path, BASE_NET)
    load_for_testing(detector, path, BASE_NET, allow_untrained=True)


def test_missing_and_unexpected_weights_are_named(save, detector):
    def change(weights):
        weights['extra.weight'] = weights.pop('neck.fpn_convs.0.conv.weight')
        return weights

    path = save(change)
    message = r'1 missing \(neck.fpn_convs.0.conv.weight\), 1 unexpected \(extra.weight\).*--allow-mismatch'
    with pytest.raises(UserError, match=message):
        load_for_testing(detector, path)
    load_for_testing(detector, path, allow_mismatch=True)


def test_one_missing_skip_norm_is_named(save, detector):
    path = save(lambda weights: {k: v for k, v in weights.items() if k != 'backbone.layer2.0.bn2_skip.weight'})
    with pytest.raises(UserError, match=r'1 missing \(backbone.layer2.0.bn2_skip.weight\)'):
        load_for_testing(detector, path)


def test_another_number_of_classes_is_an_error(save):
    cfg = tiny_config()
    cfg.model.roi_head.bbox_head.num_classes = 5
    with pytest.raises(
        UserError, match=r'fc_cls.weight has shape \(4, 32\) but the config wants \(6, 32\).*num_classes'
    ):
        load_for_testing(build(cfg), save(), allow_mismatch=True)


def test_another_architecture_is_refused_with_both_splits(save):
    with pytest.raises(UserError, match=r'\[2, 2, 3, 2\] mandatory blocks a stage.*\[2, 2, 12, 2\]'):
        load_for_testing(build(tiny_config(depth=101)), save())


def test_any_depth_weights_in_a_plain_detector(save):
    cfg = tiny_config()
    cfg.model.backbone.type = 'ResNet'
    del cfg.model.backbone['skip']
    with pytest.raises(UserError, match='0 missing, 135 unexpected .*bn1_skip'):
        load_for_testing(build(cfg), save())


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_named(save, detector, value):
    def change(weights):
        key = 'backbone.layer2.0.bn2_skip.weight'
        return weights | {key: weights[key].where(torch.arange(len(weights[key])) > 0, value)}

    path = save(change)
    with pytest.raises(UserError, match=r'weights.pth: backbone.layer2.0.bn2_skip.weight holds NaN .*\(1 such'):
        load_for_testing(detector, path, allow_mismatch=True)


def test_a_sum_that_overflows_is_no_infinity(save, detector):
    key = 'neck.fpn_convs.0.conv.weight'
    load_for_testing(detector, save(lambda weights: weights | {key: torch.full_like(weights[key], 3e38)}))


@pytest.mark.parametrize(
    'content, given',
    [
        ({'model': {}, 'optimizer': {}, 'epoch': 1}, 'model, optimizer, epoch'),
        ({'state_dict': [1]}, 'state_dict'),
        ({'state_dict': {}}, 'nothing'),
        ({}, 'nothing'),
    ],
)
def test_another_layout_is_said(save, detector, content, given):
    with pytest.raises(
        UserError, match=f'weights.pth holds {given} where only weights should be: .*convert_checkpoint.py'
    ):
        load_for_testing(detector, save(wrap=lambda _: content))


def test_a_training_goes_on_with_all_weights_only(save, detector):
    own, path = detector.state_dict(), 'weights.pth'
    checkpoint = {'state_dict': {f'module.{key}': value for key, value in own.items()}}
    require_fit(own, read_weights(checkpoint, path), path)
    require_fit(own, {key: value for key, value in own.items() if 'num_batches_tracked' not in key}, path)
    key = 'backbone.layer2.0.bn2_skip.running_var'
    for weights, message in (
        ({name: own[name] for name in own if name.startswith('backbone.')}, 'weights.pth does not fit the config: '),
        (without_skip_norms(own), r'108 missing \(backbone.layer1.0.bn1_skip.weight, .*, …\), 0 unexpected; use the'),
        ({**own, 'extra': own[key]}, r'0 missing, 1 unexpected \(extra\)'),
        ({**own, key: own[key][:1]}, rf'{key} has shape \(1,\) but the config wants'),
        ({**own, key: own[key].int()}, rf'{key} is of torch.int32, but the model has it of torch.float32'),
    ):
        with pytest.raises(UserError, match=message):
            require_fit(own, weights, path)


def test_integers_in_the_place_of_weights(save, detector):
    key = 'neck.fpn_convs.0.conv.weight'
    with pytest.raises(UserError, match=f'{key} is of torch.int64, but the model has it of torch.float32'):
        load_for_testing(detector, save(lambda weights: weights | {key: weights[key].long()}))
