import copy
import inspect
import logging
import pickle
import warnings

import pytest
import torch
from conftest import DEMO_CONFIG
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tiny import batch, build, tiny_config

from adn_mmdet import SkipAwareDistillationHook, UserError


class Mock:
    def __init__(self, model):
        self.model, self.iter, self.optim_wrapper = model, 0, None
        self.logger = logging.getLogger('test')


def test_registered_in_the_root():
    hook = HOOKS.build(dict(type='SkipAwareDistillationHook', alpha=0.4))
    assert hook.settings.alpha == 0.4


def test_attached_for_the_length_of_a_training():
    runner = Mock(build(tiny_config()).train())
    hook = SkipAwareDistillationHook(warmup_iters=4)
    hook.before_train(runner)
    ramp = []
    for runner.iter in (0, 1, 4, 100):
        hook.before_train_iter(runner, runner.iter)
        ramp.append(hook.distillation.kd_ramp)
    assert ramp == [0, 0.25, 1, 1]
    assert 'kd.loss_p2' in runner.model(**batch(runner.model), mode='loss')
    hook.after_train(runner)
    assert 'loss_rpn_cls' in runner.model(**batch(runner.model), mode='loss')


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(prediction_weight=-1.0), 'prediction_weight should not be negative.*but got 1.0, 1.0, -1.0'),
        (dict(mode='both'), "mode should be one of joint, sequential, but got 'both'"),
        (dict(warmup_iters=-1), 'warmup_iters should be a whole number, 0 or more, but got -1'),
        (dict(alpha=2), 'alpha.*but got 2'),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_the_hook_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        SkipAwareDistillationHook(**settings)


@pytest.mark.parametrize('given, nearest', [('alhpa', 'alpha'), ('warmup', 'warmup_iters'), ('kd_wieght', 'kd_weight')])
def test_an_unknown_setting_is_named_with_the_nearest(given, nearest):
    with pytest.raises(UserError, match=f"has no setting '{given}'; did you mean '{nearest}'"):
        HOOKS.build({'type': 'SkipAwareDistillationHook', given: 1})


def test_its_signature_is_that_of_the_settings():
    parameters = inspect.signature(SkipAwareDistillationHook).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == dict(
        alpha=0.5,
        gt_weight=1.0,
        kd_weight=1.0,
        prediction_weight=0.0,
        feature='gap_channel',
        temperature=1.0,
        levels=None,
        warmup_iters=0,
        mode='joint',
        top_k=None,
    )


def test_two_hooks_are_refused_and_an_interrupted_training_is_not():
    runner = Mock(build(tiny_config()).train())
    hook = SkipAwareDistillationHook()
    hook.before_train(runner)
    with pytest.raises(UserError, match='FasterRCNN is distilled already: keep one SkipAwareDistillationHook'):
        SkipAwareDistillationHook(alpha=0.4).before_train(runner)
    hook.before_train(runner)  # of the next training, after one that an exception ended before after_train
    assert runner.model.forward is hook.distillation
    hook.after_train(runner)
    assert 'forward' not in vars(runner.model)


# What detectors of mmdet freeze; the last two leave the second set free, or shared.
@pytest.mark.parametrize(
    'backbone, frozen',
    [
        (dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True), 27),  # DETR's
        (dict(norm_cfg=dict(type='BN', requires_grad=False)), 27),
        (dict(norm_eval=True), 27),
        (dict(frozen_stages=2), 12),
        (dict(norm_cfg=dict(type='GN', num_groups=4), norm_eval=True), 0),
        (dict(), 0),
        (dict(norm_eval=True, skip_aware_norm=False), 0),
    ],
    ids=str,
)
def test_norms_that_stay_untrained_are_said_at_the_start(backbone, frozen, caplog):
    model = build(tiny_config(**backbone)).train(not frozen)
    modes = [module.training for module in model.modules()]
    runner = Mock(model)
    hook = SkipAwareDistillationHook()
    hook.before_train(runner)
    assert not caplog.messages  # nothing was cloned
    stock = {key: value for key, value in model.backbone.state_dict().items() if '_skip' not in key}
    with warnings.catch_warnings(record=True):
        model.backbone.load_state_dict(stock)
    hook.before_train(runner)
    message = f'{frozen} of 27 skip-aware norms were cloned from weights that have none and are frozen'
    assert [text.startswith(message) for text in caplog.messages] == [True] * bool(frozen)
    assert not frozen or 'norm_eval=False, frozen_stages=-1 and norm_cfg.requires_grad=True' in caplog.text
    assert modes == [module.training for module in model.modules()]


class Witness(Hook):
    """Copies the model after every iteration, as a user's hook may."""

    def __init__(self):
        self.copies = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        pickle.dumps(copy.deepcopy(runner.model))
        self.copies += 1


def run(shapes, tmp_path, hooks, **overrides):
    cfg = Config.fromfile(DEMO_CONFIG)
    cfg.merge_from_dict(
        {
            'model.backbone.base_channels': 8,
            'model.neck.in_channels': [32, 64, 128, 256],
            'train_dataloader.dataset.data_root': f'{shapes}/',
            'train_dataloader.batch_size': 2,
            'train_cfg.max_iters': 2,
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint.interval': 2,
            'work_dir': str(tmp_path),
            'custom_hooks': [*cfg.custom_hooks, *hooks],
            **overrides,
        }
    )
    for unused in ('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader', 'test_evaluator'):
        cfg[unused] = None
    runner = Runner.from_cfg(cfg)
    return runner


def test_training_with_an_average_beside_it(shapes, tmp_path):
    witness = Witness()
    runner = run(shapes, tmp_path, [dict(type='EMAHook', ema_type='ExponentialMovingAverage')])
    runner.register_hook(witness)
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    assert witness.copies == 2
    assert 'forward' not in vars(runner.model) and str(runner.model.backbone.skip) == 'FFFF'
    moved = {key for key, value in runner.model.state_dict().items() if not torch.equal(value, before[key])}
    assert {
        'backbone.layer1.0.bn1.weight',
        'backbone.layer1.0.bn1_skip.weight',
        'backbone.layer4.2.conv1.weight',
    } <= moved
    checkpoint = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    assert checkpoint['state_dict'].keys() == runner.model.state_dict().keys()  # no feature, no hook in it
    assert 'ema_state_dict' in checkpoint
    # Read from the hub: mmengine keeps one visualizer a process, which writes where the first run of it did.
    log = {key: history.current() for key, history in runner.message_hub.log_scalars.items()}
    parts = [value for key, value in log.items() if 'loss' in key and key != 'train/loss']
    assert {'train/super.loss_mask', 'train/base.loss_mask', 'train/kd.loss_p5', 'train/super.acc'} <= log.keys()
    assert sum(parts) == pytest.approx(log['train/loss'], rel=1e-4)


def test_a_detector_without_adaptive_depth_is_refused_at_the_start(shapes, tmp_path):
    options = dict(type='ResNet', depth=50, base_channels=8, _delete_=True)
    runner = run(shapes, tmp_path, [], **{'model.backbone': options})
    with pytest.raises(ValueError, match='MaskRCNN should have one adaptive-depth backbone.*found ResNet'):
        runner.train()
