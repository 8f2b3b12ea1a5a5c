import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from test_training.toy import at, toy_config

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_float16_on_a_gpu(tmp_path):
    cfg = toy_config(tmp_path, hooks=[at(3, overflow(1))])
    train(cfg, amp=True)
    hub = load_from_local(tmp_path / 'epoch_2.pth', 'cpu')['message_hub']
    assert hub['runtime_info']['amp_skipped_steps'] == 1
