"""Two ranks give the mean of the ranks' own gradients, with find_unused_parameters=False."""

import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel

sys.path.append(str(Path(__file__).parents[1]))  # the ranks start without pytest's path
from tiny import DETECTORS, batch, build, tiny_config  # noqa: E402

from adn_mmdet.distillation import SelfDistillation  # noqa: E402

WORLD_SIZE = 2


def gradients(name, seeds, settings, wrap=lambda model: model):
    """One step's gradients by parameter name, averaged over the batches of ``seeds``."""
    model = build(tiny_config(name, norm_eval=True)).train()
    wrapped = wrap(model)
    SelfDistillation(wrapped, **settings).attach()
    for seed in seeds:
        torch.manual_seed(seed)
        data = batch(model, with_mask=name == 'mask_rcnn')
        data['inputs'] += torch.randn_like(data['inputs'])
        loss, _ = model.parse_losses(wrapped(**data, mode='loss'))
        (loss / len(seeds)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def run_rank(rank, port, name, settings, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=WORLD_SIZE)

    def wrap(model):
        return MMDistributedDataParallel(model, find_unused_parameters=False, broadcast_buffers=False)

    found = gradients(name, [rank], settings, wrap)
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()


@pytest.mark.parametrize('name, settings', [(name, {}) for name in DETECTORS] + [('faster_rcnn', dict(gt_weight=0.0))])
def test_two_ranks_give_the_mean_of_their_own_gradients(name, settings, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    arguments = (port, name, settings, tmp_path / 'gradients.pth')
    torch.multiprocessing.spawn(run_rank, arguments, nprocs=WORLD_SIZE)
    found = torch.load(tmp_path / 'gradients.pth')
    expected = gradients(name, range(WORLD_SIZE), settings)
    assert all(value is not None for value in expected.values())
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-5, atol=1e-6 * value.abs().max().item()), key
