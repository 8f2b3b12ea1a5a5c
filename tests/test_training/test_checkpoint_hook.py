import os

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.runner import Runner
from test_training.toy import at, toy_config, toy_train

from adn_mmdet import UserError, train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training.checkpoint_hook import AtomicBackend


def files(folder):
    return sorted(path.name for path in folder.glob('*.pth*'))


@pytest.fixture
def fill(monkeypatch, tmp_path):
    """Makes the disk full from the call on; ``monkeypatch.undo()`` makes room."""

    def full(path):
        os.symlink('/dev/full', tmp_path / 'no_room.partial')
        return tmp_path / 'no_room.partial'

    return lambda *_: monkeypatch.setattr('adn_mmdet.files.partial_path', full)


def test_a_full_disk_is_said_and_the_older_checkpoint_is_whole(tmp_path, fill, monkeypatch):
    with pytest.raises(UserError, match=r'cannot save .*epoch_2.pth \(No space left on device\): make room') as error:
        toy_train(tmp_path, hooks=[at(8, fill)], max_keep_ckpts=1)
    assert '\n' not in str(error.value)
    assert files(tmp_path) == ['epoch_1.pth'] and (tmp_path / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert load_from_local(tmp_path / 'epoch_1.pth', 'cpu')['meta']['epoch'] == 1
    monkeypatch.undo()
    toy_train(tmp_path, 'auto', max_keep_ckpts=1)
    assert files(tmp_path) == ['epoch_2.pth']


def test_a_file_that_was_there_stays_until_the_new_one_is_whole(tmp_path, fill, monkeypatch):
    path, backend = tmp_path / 'file', AtomicBackend()
    backend.put_text('old', path)
    fill()
    with pytest.raises(UserError, match='cannot save'):
        backend.put_text('new', path)
    assert path.read_text() == 'old' and files(tmp_path) == []
    monkeypatch.undo()
    with pytest.raises(UserError, match=r'cannot save .*file/below \(File exists\)'):
        backend.put(b'', path / 'below')


@pytest.mark.parametrize('keys', ['score', ['score', 'other']], ids=['one', 'two'])
def test_nothing_is_deleted_before_its_successor_is_there(tmp_path, monkeypatch, keys):
    seen = []

    def remove(self, path):
        seen.append(files(tmp_path))
        os.remove(path)

    monkeypatch.setattr(LocalBackend, 'remove', remove)
    monkeypatch.setattr('test_training.toy.ToyMetric.compute_metrics', lambda self, results: metrics(self))

    def metrics(metric):
        metric.count = getattr(metric, 'count', 0) + 1
        return dict(score=metric.count, other=-metric.count)

    toy_train(tmp_path, max_keep_ckpts=1, save_best=keys, rule='greater')
    assert {'best_score_epoch_1.pth', 'epoch_1.pth', 'epoch_2.pth'} <= set(seen[0])
    assert {'best_score_epoch_1.pth', 'best_score_epoch_2.pth', 'epoch_2.pth'} <= set(seen[1]) and len(seen) == 2
    others = [] if keys == 'score' else ['best_other_epoch_1.pth']
    assert files(tmp_path) == [*others, 'best_score_epoch_2.pth', 'epoch_2.pth']
    assert 'exact_resume' not in torch.load(tmp_path / 'best_score_epoch_2.pth', weights_only=False)


def test_what_a_killed_save_left_is_removed_and_a_copied_folder_leaves_the_original_alone(tmp_path):
    original, copy = tmp_path / 'original', tmp_path / 'copy'
    toy_train(original, save_best='score', rule='greater')
    before = files(original)
    copy.mkdir()
    for name in ('epoch_1.pth', 'best_score_epoch_1.pth'):
        (copy / name).write_bytes((original / name if name in before else original / 'epoch_1.pth').read_bytes())
    (copy / 'epoch_7.pth.partial').write_bytes(b'half')
    toy_train(copy, str(copy / 'epoch_1.pth'), save_best='score', rule='greater')
    assert files(original) == before and not any(copy.glob('*.partial'))


def test_safety_hooks_can_be_left_out_or_be_ones_own(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.merge_from_dict({'default_hooks.preemption': None, 'default_hooks.checkpoint': None})
    cfg.default_hooks.finite_loss = dict(type='CheckInvalidLossHook')
    train(cfg)
    hooks = {name: hook.type for name, hook in cfg.default_hooks.items() if hook}
    assert hooks == dict(
        logger='LoggerHook',
        finite_loss='CheckInvalidLossHook',
        exact_resume='ExactResumeHook',
        loss_scale='LossScaleHook',
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize('keys', ['score', ['score', 'other']], ids=['one', 'two'])
def test_the_best_checkpoint_is_kept_where_its_successor_has_its_name(tmp_path, monkeypatch, keys):
    """In an iteration-based training with ``by_epoch`` it is of epoch 0 every time."""
    values = iter([(1, 9), (2, 8), (3, 10)])
    monkeypatch.setattr(
        'test_training.toy.ToyMetric.compute_metrics', lambda self, results: dict(zip(('score', 'other'), next(values)))
    )
    cfg = toy_config(tmp_path, by_epoch=False, save_best=keys, rule='greater')
    cfg.default_hooks.checkpoint.update(by_epoch=True, interval=1)
    cfg.train_cfg.val_interval = 4
    train(cfg)
    iterations = [12, 12] if isinstance(keys, list) else [12]
    best = sorted(tmp_path.glob('best_*_epoch_0.pth'))
    assert [load_from_local(path, 'cpu')['meta']['iter'] for path in best] == iterations
    assert any('iter' not in name for name in files(tmp_path))


def test_one_file_that_is_overwritten_is_kept(tmp_path):
    toy_train(tmp_path, filename_tmpl='latest.pth', max_keep_ckpts=1)
    assert files(tmp_path) == ['latest.pth'] and load_from_local(tmp_path / 'latest.pth', 'cpu')['meta']['epoch'] == 2
    (tmp_path / 'last_checkpoint').unlink()
    toy_train(tmp_path, 'auto', filename_tmpl='latest.pth', max_keep_ckpts=1)
    assert files(tmp_path) == ['latest.pth']


def test_validation_without_a_training_saves_nothing(tmp_path):
    cfg = toy_config(tmp_path, save_best='score', rule='greater')
    train(cfg)
    before = {path: path.read_bytes() for path in tmp_path.glob('*.pth')}
    cfg.load_from, cfg.experiment_name = str(tmp_path / 'epoch_2.pth'), 'validation'
    assert Runner.from_cfg(cfg).val() == {'score': 1}
    assert {path: path.read_bytes() for path in tmp_path.glob('*.pth')} == before


def test_what_is_replaced_and_added_is_said_in_one_line(tmp_path):
    cfg = toy_config(tmp_path, hooks=[])
    cfg.log_level = 'INFO'
    train(cfg)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('replaced in the config: CheckpointHook by AtomicCheckpointHook; added in the config: Exact') == 1
