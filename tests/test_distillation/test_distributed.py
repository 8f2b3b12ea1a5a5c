"""Training on two ranks: their gradients are the mean of each one's own, with find_unused_parameters=False."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

sys.path.append(str(Path(__file__).parents[1]))  # the ranks start without pytest's path
from steps import furthest, raw_batch, watched_sgd  # noqa: E402
from tiny import DETECTORS, build, tiny_config  # noqa: E402

from adn_mmdet.distillation import DistillationSettings, SelfDistillation  # noqa: E402

WORLD_SIZE, STEPS = 2, 2
RUNS = [(name, {}) for name in DETECTORS] + [('mask_rcnn', {'gt_weight': 0.0}), ('mask_rcnn', {'mode': 'sequential'})]


def train(name, rank, settings):
    """What each step began with, and the weights after the last."""
    model = build(tiny_config(name)).train()
    wrapped = MMDistributedDataParallel(model, find_unused_parameters=False, broadcast_buffers=False)
    SelfDistillation(wrapped, DistillationSettings(**settings)).attach()
    optimizer, records = watched_sgd(model, lr=0.01, momentum=0.9, weight_decay=1e-4)
    for step in range(STEPS):
        wrapped.train_step(raw_batch(name, step * WORLD_SIZE + rank), OptimWrapper(optimizer))
    return records, dict(model.named_parameters())


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=WORLD_SIZE)
    torch.save([train(name, rank, settings) for name, settings in RUNS], folder / f'{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What every rank found in all runs; processes take longer to start than to train."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(run_rank, (folder,), nprocs=WORLD_SIZE)
    return [torch.load(folder / f'{rank}.pth') for rank in range(WORLD_SIZE)]


def own_gradients(model, name, seed):
    """Those of one process with the same weights."""
    model.zero_grad()
    data = model.data_preprocessor(raw_batch(name, seed), True)
    model.parse_losses(model(**data, mode='loss'))[0].backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


@pytest.mark.parametrize('run', range(len(RUNS)), ids=[f'{name}-{settings}' for name, settings in RUNS])
def test_two_ranks_give_the_mean_of_their_own_gradients(run, ranks):
    name, settings = RUNS[run]
    (records, weights), (_, other_weights) = (rank[run] for rank in ranks)
    model = build(tiny_config(name)).train()
    joint = {key: value for key, value in settings.items() if key != 'mode'}
    SelfDistillation(model, DistillationSettings(**joint)).attach()
    for step, record in enumerate(records):
        model.load_state_dict({key: weight for key, (weight, _) in record.items()}, strict=False)
        own = [own_gradients(model, name, step * WORLD_SIZE + rank) for rank in range(WORLD_SIZE)]
        assert own[0].keys() == record.keys()
        for key, (_, gradient) in record.items():
            mean = sum(gradients[key] for gradients in own) / WORLD_SIZE
            assert furthest(gradient, mean) <= 1e-6, (step, key)  # float32
        assert furthest(*(gradients['backbone.conv1.weight'] for gradients in own)) > 0.1  # no trivial mean
    assert len(records) == STEPS
    assert all(torch.equal(weight, other_weights[key]) for key, weight in weights.items())
