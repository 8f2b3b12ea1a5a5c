import os
import shutil

import pytest
import torch
from test_training.toy import toy_config, toy_train

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training.resume import find_checkpoint


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
    assert find_checkpoint(work_dir) == str(work_dir / 'epoch_2.pth')


def test_files_elsewhere_are_found_as_well(work_dir, finished, tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(finished / 'epoch_1.pth'))
    assert find_checkpoint(tmp_path) == str(finished / 'epoch_1.pth')


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
    assert find_checkpoint(work_dir) == str(work_dir / 'epoch_1.pth')
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
