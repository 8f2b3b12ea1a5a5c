import os
import re
import shutil

import pytest
import torch
from mmengine.config import Config
from test_training.toy import NUM_IMAGES, toy_config, toy_train

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training.resume import find_checkpoint
from adn_mmdet.training.resumed_settings import read_settings


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('finished')
    toy_train(work_dir)
    return work_dir


@pytest.fixture
def work_dir(finished, tmp_path):
    """A moved work folder: ``last_checkpoint`` names a file of another that is no longer there."""
    shutil.copytree(finished, tmp_path / 'moved')
    (tmp_path / 'moved' / 'last_checkpoint').write_text('/nowhere/epoch_2.pth')
    return tmp_path / 'moved'


def test_moved_folder(work_dir):
    assert find_checkpoint(work_dir).path == str(work_dir / 'epoch_2.pth')


def test_files_elsewhere_are_found_as_well(work_dir, finished, tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(finished / 'epoch_1.pth'))
    assert find_checkpoint(tmp_path).path == str(finished / 'epoch_1.pth')


@pytest.mark.parametrize('damage', ['truncated', 'missing', 'pointer'])
def test_the_newest_whole_one_before_a_damaged_one(work_dir, damage, capsys):
    newest = work_dir / 'epoch_2.pth'
    if damage == 'truncated':
        os.truncate(newest, newest.stat().st_size // 2)
        os.utime(work_dir / 'epoch_1.pth', (0, 0))  # copied: dates say nothing
    elif damage == 'missing':
        newest.unlink()
    else:
        newest.write_bytes(b'')
        (work_dir / 'last_checkpoint').unlink()
    torch.save({'state_dict': {}, 'meta': {'iter': 99}}, work_dir / 'best_score_epoch_9.pth')
    assert find_checkpoint(work_dir).path == str(work_dir / 'epoch_1.pth')
    said = capsys.readouterr().out
    assert f'the whole checkpoint that got furthest is {work_dir}/epoch_1.pth, with 6 iterations' in said
    assert ('last_checkpoint does not help: ' in said) is (damage != 'pointer')
    toy_train(work_dir, 'auto')
    assert load_from_local(newest, 'cpu')['meta']['iter'] == 12


def test_no_checkpoint_at_all_starts_anew(tmp_path, capsys):
    toy_train(tmp_path, 'auto')
    assert f'{tmp_path} has no checkpoint to resume: a new training starts' in capsys.readouterr().out
    assert load_from_local(tmp_path / 'epoch_2.pth', 'cpu')['meta']['iter'] == 12


def test_a_new_training_keeps_the_weights_that_it_starts_from(tmp_path, finished):
    cfg = toy_config(tmp_path)
    cfg.load_from = str(finished / 'epoch_2.pth')
    train(cfg, 'auto')
    assert cfg.load_from and not cfg.resume


def test_a_config_may_ask_for_it(work_dir):
    cfg = toy_config(work_dir)
    cfg.resume = True
    train(cfg)
    assert cfg.load_from == str(work_dir / 'epoch_2.pth') and isinstance(cfg.randomness.seed, int)


def test_weights_are_no_training_to_resume(tmp_path):
    torch.save({'state_dict': {}}, tmp_path / 'weights.pth')
    with pytest.raises(UserError, match='weights.pth has weights alone, no training to resume: .*load_from='):
        toy_train(tmp_path, str(tmp_path / 'weights.pth'))
    with pytest.raises(UserError, match='there is no checkpoint .*gone.pth'):
        toy_train(tmp_path, str(tmp_path / 'gone.pth'))


def with_text(work_dir, **options):
    """A config whose text is in the checkpoint, as any but the toy's is."""
    return Config(toy_config(work_dir, **options).to_dict())


@pytest.fixture(scope='module')
def with_settings(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('with_settings')
    train(with_text(work_dir))
    return work_dir


def test_what_stays_and_what_changes_is_said_in_two_lines(with_settings, tmp_path):
    cfg = with_text(tmp_path)
    cfg.optim_wrapper.optimizer.lr = 0.5
    cfg.param_scheduler[1].gamma = 0.7
    cfg.custom_hooks[0].momentum = 0.2
    cfg.train_dataloader.update(batch_size=4, num_workers=1)
    cfg.train_cfg.max_epochs = 3
    train(cfg, str(with_settings / 'epoch_1.pth'))
    log = max(tmp_path.glob('*/*.log')).read_text()
    (stays,) = re.findall('as saved in .*epoch_1.pth, not as the config says: (.*); for other values', log)
    assert stays == 'optim_wrapper.optimizer.lr=0.01 (not 0.5), param_scheduler.1.gamma=0.1 (not 0.7)'
    (changes,) = re.findall('as the config says, other than in .*epoch_1.pth: (.*)', log)
    assert changes == (
        'train_dataloader.batch_size=4 (was 2), train_cfg.max_epochs=3 (was 2), custom_hooks.0.momentum=0.2 (was 0.1)'
    )
    groups = load_from_local(tmp_path / 'epoch_3.pth', 'cpu')['optimizer']['param_groups']
    assert groups[0]['initial_lr'] == 0.01 and groups[0]['lr'] == pytest.approx(0.001)


def test_nothing_is_said_where_nothing_differs(with_settings, tmp_path):
    train(with_text(tmp_path), str(with_settings / 'epoch_1.pth'))
    assert not re.search('as saved in|as the config says', max(tmp_path.glob('*/*.log')).read_text())


def other_optimiser(cfg):
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01)


def other_architecture(cfg):
    cfg.model.weight = 1


def fewer_schedules(cfg):
    del cfg.param_scheduler[0]


def other_schedule(cfg):
    cfg.param_scheduler[1] = dict(type='CosineAnnealingLR', T_max=2)


def no_average(cfg):
    cfg.custom_hooks.pop(0)


def other_loop(cfg):
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=99)


def too_short(cfg):
    cfg.train_cfg.max_epochs = 1


@pytest.mark.parametrize(
    'change, message',
    [
        (other_optimiser, 'state of another optimiser than the config has .*set that back, or start from its weights'),
        (other_architecture, 'ballast has shape .0,. but the config wants .262144,.'),
        (fewer_schedules, 'state of other schedules than the config has'),
        (other_schedule, 'state of other schedules than the config has'),
        (no_average, 'averaged weights beside those that were trained: add the EMAHook'),
        (
            too_short,
            'has epoch 2, beyond train_cfg.max_epochs=1: .*set --cfg-options train_cfg.max_epochs to more than 2',
        ),
    ],
)
def test_what_cannot_go_on_is_refused(finished, tmp_path, change, message):
    cfg = toy_config(tmp_path)
    cfg.train_cfg.max_epochs = 3
    change(cfg)
    with pytest.raises(UserError, match=f'epoch_2.pth.* {message}') as error:
        train(cfg, str(finished / 'epoch_2.pth'))
    assert '\n' not in str(error.value) and not any(tmp_path.glob('*.pth'))


@pytest.mark.parametrize(
    'change, name', [(other_optimiser, 'optim_wrapper.optimizer.type=AdamW'), (other_loop, 'train_cfg.type=Epoch')]
)
def test_another_kind_is_named_by_its_setting(with_settings, tmp_path, change, name):
    cfg = with_text(tmp_path)
    change(cfg)
    with pytest.raises(UserError, match=f'was trained with {name}.*, the config has .*: it cannot go on so'):
        train(cfg, str(with_settings / 'epoch_1.pth'))


def edit(source, target, change):
    content = torch.load(source, weights_only=False)
    change(content)
    torch.save(content, target)
    return str(target)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: content['state_dict'].pop('layers.0.weight'), r'1 missing \(layers.0.weight\)'),
        (lambda content: content['ema_state_dict'].pop('module.layers.0.weight'), r'ema_state_dict.* 1 missing'),
        (lambda content: content['meta'].update(iter=-5), 'is damaged: meta.iter cannot be'),
        (
            lambda content: content['meta'].update(iter=10**9),
            r'is damaged: meta.iter \(1000000000, while the log has 5\) cannot',
        ),
        (lambda content: content['meta'].update(epoch='1'), 'is damaged: meta.epoch cannot be'),
        (lambda content: content.update(meta=[1]), 'is damaged: meta cannot be'),
        (lambda content: content.update(message_hub=[]), 'is damaged: message_hub cannot be'),
        (lambda content: content.update(message_hub={}), 'cannot be resumed by this config .AssertionError'),
        (lambda content: content['message_hub'].update(log_scalars=3), 'cannot be resumed by this config .Attribute'),
        (lambda content: content.update(optimizer={'state': {}}), 'state of another optimiser'),
        (lambda content: content['optimizer']['param_groups'].append({}), 'state of another optimiser'),
        (lambda content: content.pop('param_schedulers'), 'state of other schedules'),
        (lambda content: content['exact_resume'].update(random=[{}]), 'cannot be resumed by this config .KeyError'),
    ],
)
def test_a_damaged_checkpoint_is_refused(finished, tmp_path, change, message):
    path = edit(finished / 'epoch_1.pth', tmp_path / 'damaged.pth', change)
    with pytest.raises(UserError, match=f'damaged.pth.*{message}') as error:
        toy_train(tmp_path, path)
    assert '\n' not in str(error.value)


def test_nothing_in_a_checkpoint_is_run(finished, tmp_path):
    code = f'a = open({str(tmp_path / "ran")!r}, "w")\nmodel = dict(type=print("ran"))'
    path = edit(
        finished / 'epoch_1.pth',
        tmp_path / 'crafted.pth',
        lambda content: content['meta'].update(config=code, cfg=code),
    )
    train(with_text(tmp_path / 'run'), path)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('text', ['x = (', '(' * 9999, 'x = ' + '[' * 500 + ']' * 500, 7, None, '\0', 'x: int'])
def test_a_text_that_is_no_config_has_no_settings(text):
    assert read_settings(text) in ({}, {'x': None}) or 'x' in read_settings(text)


def test_settings_are_read_as_they_were_printed(with_settings):
    cfg = with_text(with_settings)
    read = read_settings(cfg.pretty_text)
    assert read == Config(cfg.to_dict()).to_dict() and read_settings('a = dict(b={**c}, d=-1)\ne = float("inf")')['e']


def test_a_complete_training_may_be_asked_for_again(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / 'copy')
    before = (tmp_path / 'copy' / 'epoch_2.pth').read_bytes()
    toy_train(tmp_path / 'copy', 'auto')
    assert (tmp_path / 'copy' / 'epoch_2.pth').read_bytes() == before
    assert 'is complete; to train longer, set train_cfg.max_epochs to more than 2' in capsys.readouterr().out


@pytest.mark.parametrize(
    'content', [b'', b'\xff\xfe\x00', b'x' * 10**7, b'epoch_2.pth\0', b'epoch_2.pth\nepoch_1.pth', None], ids=repr
)
def test_a_pointer_that_names_nothing(finished, tmp_path, content, capsys):
    shutil.copytree(finished, tmp_path / 'copy')
    pointer = tmp_path / 'copy' / 'last_checkpoint'
    pointer.unlink()
    pointer.write_bytes(content) if content is not None else pointer.mkdir()
    assert find_checkpoint(tmp_path / 'copy').path == str(tmp_path / 'copy' / 'epoch_2.pth')
    assert 'last_checkpoint does not help: ' in capsys.readouterr().out


def test_odd_files_beside_are_passed_over(finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'copy')
    folder = tmp_path / 'copy'
    (folder / 'last_checkpoint').unlink()
    (folder / 'folder.pth').mkdir()
    (folder / 'text.pth').write_text('no checkpoint')
    os.symlink('gone', folder / 'link.pth')
    torch.save([1], folder / 'list.pth')
    for name, change in [('no_meta', lambda c: c.pop('meta')), ('odd_meta', lambda c: c['meta'].update(iter='z'))]:
        edit(folder / 'epoch_2.pth', folder / f'{name}.pth', change)
    assert find_checkpoint(folder).path == str(folder / 'epoch_2.pth')


def test_a_checkpoint_is_read_once(finished, tmp_path, monkeypatch):
    read = []
    load = torch.load
    monkeypatch.setattr(torch, 'load', lambda file, **options: read.append(file) or load(file, **options))
    shutil.copytree(finished, tmp_path / 'copy')
    (tmp_path / 'copy' / 'last_checkpoint').write_text('epoch_1.pth')
    toy_train(tmp_path / 'copy', 'auto')
    assert len(read) == 1


def test_a_config_that_a_resumed_training_dumped(finished, tmp_path):
    cfg = toy_config(tmp_path)
    train(cfg, str(finished / 'epoch_1.pth'))
    dumped = toy_config(tmp_path / 'new')
    dumped.resume, dumped.load_from = cfg.resume, cfg.load_from
    with pytest.raises(
        UserError, match='resume=True with load_from=.*: give --resume .*epoch_1.pth to go on .*resume=False'
    ):
        train(dumped)
    assert not (tmp_path / 'new').exists()
    train(dumped, str(finished / 'epoch_1.pth'))


def test_a_complete_training_reads_no_images(tmp_path, monkeypatch):
    toy_train(tmp_path, by_epoch=False)
    monkeypatch.delattr('test_training.toy.ToyImages.__getitem__')
    toy_train(tmp_path, 'auto', by_epoch=False)


def test_other_batch_sizes_more_than_once(finished, tmp_path):
    """Iterations count on, so that there are more than epochs of the new size have."""
    cfg = toy_config(tmp_path)
    cfg.train_dataloader.batch_size = NUM_IMAGES
    train(cfg, str(finished / 'epoch_1.pth'))
    cfg = toy_config(tmp_path)
    cfg.train_cfg.max_epochs = 3
    train(cfg, 'auto')
    assert load_from_local(tmp_path / 'epoch_3.pth', 'cpu')['meta']['iter'] == 6 + 1 + 6
