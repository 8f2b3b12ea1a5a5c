import copy
import pickle

import pytest
import torch
from conftest import DEMO_CONFIG
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tiny import batch, build, tiny_config

from adn_mmdet import SkipAwareDistillationHook


class Mock:
    def __init__(self, model):
        self.model, self.iter, self.optim_wrapper = model, 0, None


def test_registered_in_the_root():
    hook = HOOKS.build(dict(type='SkipAwareDistillationHook', alpha=0.4))
    assert hook.settings['alpha'] == 0.4


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
        (dict(mode='both'), "mode should be 'joint' or 'sequential', but got 'both'"),
        (dict(warmup_iters=-1), 'warmup_iters should not be negative, but got -1'),
        (dict(alpha=2), 'alpha.*but got 2'),
    ],
    ids=str,
)
def test_bad_settings_are_refused_when_the_hook_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        SkipAwareDistillationHook(**settings)


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
