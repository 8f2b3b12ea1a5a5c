import pytest
from test_training.toy import ITERS_PER_EPOCH, at, same_training, sigterm, toy_config, toy_train

from adn_mmdet import train
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.training import PREEMPTED


def last(by_epoch):
    return 'epoch_2.pth' if by_epoch else f'iter_{2 * ITERS_PER_EPOCH}.pth'


@pytest.fixture(scope='module', params=[True, False], ids=['epochs', 'iterations'])
def straight(request, tmp_path_factory):
    """A run without interruption, whose seed nobody chose."""
    work_dir = tmp_path_factory.mktemp('straight')
    toy_train(work_dir, by_epoch=request.param)
    return request.param, work_dir


def resumed_as(straight, work_dir, resume='auto', **options):
    by_epoch, straight_dir = straight
    toy_train(work_dir, resume, by_epoch=by_epoch, **options)
    first, second = (load_from_local(folder / last(by_epoch), 'cpu') for folder in (straight_dir, work_dir))
    return same_training(first, second)


def test_half_a_run_and_the_other_half_are_the_whole(straight, tmp_path):
    by_epoch, straight_dir = straight
    half = straight_dir / ('epoch_1.pth' if by_epoch else f'iter_{ITERS_PER_EPOCH}.pth')
    assert resumed_as(straight, tmp_path, str(half))


@pytest.mark.parametrize('iteration', [1, 3, 6, 8, 12])
def test_a_signal_at_any_iteration_changes_nothing(straight, tmp_path, iteration):
    """The seed comes from the first run's checkpoint; that the interrupted run has another is seen to."""
    by_epoch, straight_dir = straight
    seed = load_from_local(straight_dir / last(by_epoch), 'cpu')['meta']['seed']
    cfg = toy_config(tmp_path, by_epoch=by_epoch, hooks=[at(iteration, sigterm)])
    cfg.randomness = dict(seed=seed)
    with pytest.raises(SystemExit) as exit:
        train(cfg)
    assert exit.value.code == PREEMPTED == 75
    assert load_from_local((tmp_path / 'last_checkpoint').read_text(), 'cpu')['meta']['iter'] == iteration
    assert resumed_as(straight, tmp_path)


def test_other_random_numbers_would_show(straight, tmp_path):
    by_epoch, straight_dir = straight
    half = straight_dir / ('epoch_1.pth' if by_epoch else f'iter_{ITERS_PER_EPOCH}.pth')
    cfg = toy_config(tmp_path, by_epoch=by_epoch)
    cfg.default_hooks.exact_resume = None
    train(cfg, str(half))
    first, second = (load_from_local(folder / last(by_epoch), 'cpu') for folder in (straight_dir, tmp_path))
    second['exact_resume'] = first['exact_resume']
    assert not same_training(first, second)
