import pytest
import torch
from test_training.toy import at, toy_train

from adn_mmdet import UserError


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
