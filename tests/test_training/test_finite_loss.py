from unittest.mock import Mock

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from test_training.toy import at, toy_config, toy_train

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training import FiniteLossHook


def spoil_images(runner, data_batch):
    data_batch['inputs'][0].fill_(float('nan'))


def spoil_gradient(runner, data_batch):
    weight = runner.model.layers[0].weight
    handle = weight.register_hook(lambda gradient: handle.remove() or gradient * float('nan'))


def test_the_iteration_the_losses_the_images_and_the_rate_are_named(tmp_path):
    seen = []

    def spoil(runner, data_batch):
        seen.extend(sample.img_path for sample in data_batch['data_samples'])
        spoil_images(runner, data_batch)

    with pytest.raises(UserError) as error:
        toy_train(tmp_path, by_epoch=False, hooks=[at(6, spoil)])
    message = str(error.value)
    assert (
        message.startswith('iteration 6: loss = nan, loss_square = nan, loss_rest = nan, with ') and '\n' not in message
    )
    assert f'on the images {seen[0]}, {seen[1]}. No checkpoint was written' in message and 'lr = 0.00' in message
    assert not any(tmp_path.glob('*.pth'))  # iteration 6 would have been saved


def test_the_average_of_weights_never_takes_them(tmp_path):
    kept = []
    hook = at(3, spoil_images)

    def remember(runner, data_batch):
        kept.append(next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')))

    with pytest.raises(UserError, match='iteration 3: '):
        toy_train(tmp_path, hooks=[hook, at(2, remember)])
    assert all(parameter.isfinite().all() for parameter in kept[0].parameters())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss of the last iteration of an epoch is finite, its gradient is not."""
    with pytest.raises(UserError, match=r'2 weights are not finite \(the first is layers.0.weight\) although'):
        toy_train(tmp_path, hooks=[at(12, lambda *step: (spoil_gradient(*step), spoil_second(*step)))])
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


def spoil_second(runner, data_batch):
    bias = runner.model.layers[0].bias
    handle = bias.register_hook(lambda gradient: handle.remove() or torch.full_like(gradient, float('inf')))


BRANCHES = dict(
    sup=[DetDataSample(metainfo=dict(img_path='a.jpg'))], unsup=[DetDataSample(metainfo=dict(img_path='b.jpg'))]
)


@pytest.mark.parametrize(
    'samples, images',
    [
        (BRANCHES, ', on the images a.jpg, b.jpg. No checkpoint'),
        (torch.zeros(2), ' = 0.1. No checkpoint'),
        ([DetDataSample()], ' = 0.1. No checkpoint'),
        (None, ' = 0.1. No checkpoint'),
    ],
    ids=['branches', 'tensor', 'no path', 'none'],
)
def test_any_kind_of_data_samples(samples, images):
    runner = Mock(iter=4)
    runner.optim_wrapper.get_lr.return_value = {'lr': [0.1]}
    with pytest.raises(UserError, match=f'iteration 5: loss = nan, with lr.*{images}'):
        FiniteLossHook().after_train_iter(runner, 0, {'data_samples': samples}, {'loss': torch.tensor(float('nan'))})


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(AmpOptimWrapper):
    """AmpOptimWrapper with torch's scaler for the CPU: mmengine's wants a GPU."""

    def __init__(self, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
        self.cast_dtype, self._scale_update_param = torch.bfloat16, None


def amp_config(work_dir, hooks):
    cfg = toy_config(work_dir, hooks=hooks)
    cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
    return cfg


def overflow(times):
    def action(runner, data_batch):
        weight, left = runner.model.layers[0].weight, iter(range(times))
        weight.register_hook(lambda gradient: gradient * (float('inf') if next(left, None) is not None else 1))

    return action


def test_skipped_steps_are_counted_and_logged(tmp_path):
    train(amp_config(tmp_path, [at(3, overflow(1)), at(8, overflow(1))]))
    hub = load_from_local(tmp_path / 'epoch_2.pth', 'cpu')['message_hub']
    assert hub['log_scalars']['train/amp_skipped_steps'].data[0].tolist() == [0] * 2 + [1] * 5 + [2] * 5
    assert hub['log_scalars']['train/amp_scale'].data[0].tolist() == [4.0] * 2 + [2.0] * 5 + [1.0] * 5
    assert '"amp_skipped_steps": 2' in next(tmp_path.glob('*/vis_data/scalars.json')).read_text()
    cfg = amp_config(tmp_path, [at(9, overflow(1))])
    (tmp_path / 'epoch_2.pth').unlink()
    with pytest.raises(UserError, match='fell to 0.5 after 3 skipped'):  # the first, and the scale, were resumed
        cfg.custom_hooks.append(at(10, overflow(1)))
        train(cfg, 'auto')


def test_a_collapsed_scale_stops_the_run(tmp_path):
    message = (
        'iteration 4: the loss scale of mixed precision fell to 0.5 after 3 skipped steps: lower the learning rate'
    )
    with pytest.raises(UserError, match=message):
        train(amp_config(tmp_path, [at(2, overflow(99))]))
    assert not any(tmp_path.glob('*.pth'))


@pytest.mark.gpu
def test_float16_on_a_gpu(tmp_path):
    cfg = toy_config(tmp_path, hooks=[at(3, overflow(1))])
    train(cfg, amp=True)
    hub = load_from_local(tmp_path / 'epoch_2.pth', 'cpu')['message_hub']
    assert hub['runtime_info']['amp_skipped_steps'] == 1
