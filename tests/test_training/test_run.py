import errno
import os
import re
import signal

import pytest
import torch
import torch.distributed as dist
from conftest import DEMO_CONFIG
from mmengine.config import Config
from test_training.toy import at, same, same_training, sigterm, toy_config, toy_pair_config, toy_train
from tiny import load_tool

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training import PREEMPTED

OUT_OF_MEMORY = (
    'CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.1 GiB is free. '
    'Including non-PyTorch memory, this process has 14.67 GiB memory in use.'
)


def fails_with(error):
    def action(runner, data_batch):
        raise error

    return at(2, action)


def test_no_room_on_the_gpu(tmp_path):
    message = '2.50 GiB. GPU 0 .* 1.1 GiB is free. Lower the need: .*with_cp=True.*--amp.*batch_size'
    with pytest.raises(UserError, match=message):
        toy_train(tmp_path, hooks=[fails_with(torch.cuda.OutOfMemoryError(OUT_OF_MEMORY))])


def test_no_room_for_logs(tmp_path):
    with pytest.raises(UserError, match=r'cannot write scalars.json \(No space left on device\): make room'):
        toy_train(tmp_path, hooks=[fails_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'scalars.json'))])


@pytest.mark.parametrize('error', [RuntimeError('other'), OSError(errno.EIO, 'other'), KeyboardInterrupt()])
def test_other_errors_stay_as_they_are(tmp_path, error):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(type(error)) as raised:
        toy_train(tmp_path, hooks=[fails_with(error)])
    assert raised.value is error
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1))


def test_weights_without_gradient_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = toy_config(tmp_path)
    cfg.model.unused = True
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    dist.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match='no loss depends on unused.weight, unused.bias: .*find_unused_parameters'):
            train(cfg)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize('interval, saved', [(1, 'epoch_1.pth'), (2, 'preempted.pth')])
def test_a_signal_in_a_validation(tmp_path, interval, saved):
    """Where the epoch is saved the process goes at once, otherwise when its weights are back from their average."""
    cfg = toy_config(tmp_path, hooks=[at(None, sigterm)])
    cfg.default_hooks.checkpoint.interval = interval
    with pytest.raises(SystemExit) as exit:
        train(cfg)
    assert exit.value.code == PREEMPTED and [path.name for path in tmp_path.glob('*.pth')] == [saved]
    toy_train(tmp_path, 'auto')
    straight = toy_config(tmp_path / 'straight')
    straight.randomness = dict(seed=load_from_local(tmp_path / saved, 'cpu')['meta']['seed'])
    train(straight)
    first, second = (load_from_local(folder / 'epoch_2.pth', 'cpu') for folder in (tmp_path, tmp_path / 'straight'))
    assert same_training(first, second)


def test_without_checkpoints_a_signal_just_ends_the_run(tmp_path):
    cfg = toy_config(tmp_path, hooks=[at(3, sigterm)])
    cfg.default_hooks.checkpoint = None
    with pytest.raises(SystemExit) as exit:
        train(cfg)
    assert exit.value.code == PREEMPTED and not any(tmp_path.glob('*.pth'))


def test_accumulated_gradients_are_used_up_first(tmp_path):
    cfg = toy_config(tmp_path, hooks=[at(3, sigterm)])
    cfg.optim_wrapper.accumulative_counts = 4
    with pytest.raises(SystemExit):
        train(cfg)
    assert load_from_local(tmp_path / 'preempted.pth', 'cpu')['meta']['iter'] == 4


def test_two_optimisers(tmp_path):
    straight, stopped = tmp_path / 'straight', tmp_path / 'stopped'
    train(toy_pair_config(straight))
    cfg = toy_pair_config(stopped, hooks=[at(3, sigterm)])
    cfg.randomness = dict(seed=load_from_local(straight / 'epoch_2.pth', 'cpu')['meta']['seed'])
    with pytest.raises(SystemExit) as exit:
        train(cfg)
    assert exit.value.code == PREEMPTED and load_from_local(stopped / 'preempted.pth', 'cpu')['meta']['iter'] == 3
    train(toy_pair_config(stopped), 'auto')
    first, second = (load_from_local(folder / 'epoch_2.pth', 'cpu') for folder in (straight, stopped))
    assert same(first['state_dict'], second['state_dict']) and same(first['optimizer'], second['optimizer'])


def test_missing_gpu_and_batch_size_are_said(tmp_path):
    with pytest.raises(UserError, match='--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        train(toy_config(tmp_path), auto_scale_lr=True)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='--amp needs a GPU'):
            train(toy_config(tmp_path), amp=True)


def test_the_help_names_the_exit_code(capsys):
    with pytest.raises(SystemExit):
        load_tool('train').main(['--help'])
    assert f'{PREEMPTED} (PREEMPTED) after SIGTERM' in capsys.readouterr().out


def test_the_real_detector_is_exact_too_and_one_line_says_what_is_wrong(tiny_options, tmp_path, capsys):
    """Two epochs of two iterations with flips, average, validation of two depths."""
    cfg = Config.fromfile(DEMO_CONFIG)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    cfg.train_dataloader.dataset.indices = 4
    cfg.val_dataloader.dataset.indices = 1
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.custom_hooks.append(dict(type='EMAHook'))
    cfg.dump(tmp_path / 'epochs.py')
    ours = ('checkpoint', 'max_iters', 'val_interval')
    options = [option for option in tiny_options if not any(name in option for name in ours)]
    config = str(tmp_path / 'epochs.py')
    main = load_tool('train').main
    straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
    assert main([config, '--work-dir', str(straight), *options]) == 0
    assert main([config, '--work-dir', str(resumed), '--resume', str(straight / 'epoch_1.pth'), *options]) == 0
    first, second = (load_from_local(folder / 'epoch_2.pth', 'cpu') for folder in (straight, resumed))
    assert same_training(first, second) and first['meta']['iter'] == 4
    log = load_from_local(straight / 'epoch_2.pth', 'cpu')['message_hub']['log_scalars']
    assert 'val/TTTT/coco/bbox_mAP' in log
    log = max(straight.glob('*/*.log')).read_text()
    assert 'replaced in the config: CheckpointHook by AtomicCheckpointHook, ValLoop by SubNetValLoop; added in' in log
    assert not re.search('as saved in|as the config says', max(resumed.glob('*/*.log')).read_text())
    capsys.readouterr()
    argv = [config, '--work-dir', str(tmp_path / 'diverged'), *options, 'optim_wrapper.optimizer.lr=1e30']
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: iteration ') and 'on the images ' in error and error.count('\n') == 1
    assert not any((tmp_path / 'diverged').glob('*.pth'))


def test_annotations_are_parsed_once(tmp_path, tiny_options, parsed):
    assert (
        load_tool('train').main([DEMO_CONFIG, '--work-dir', str(tmp_path), *tiny_options, 'train_cfg.max_iters=1']) == 0
    )
    assert parsed == [16, 6]  # of training and of validation, each by its check, its data set and maybe its metric
