"""How much memory a training step takes: what it holds for its backward, on any device, and all of it on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef


def peak_saved_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """The most bytes that tensors saved for the backward held at any time of a training step.

    Counted are storages, once each, from the moment they are saved until they are freed; the weights and buffers of
    ``model``, which are there anyway, are not.

    Args:
        step: runs forward and backward.
        model: what it trains.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, tuple[int, StorageWeakRef]] = {}
    peak = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal held, peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held = {key: value for key, value in held.items() if not value[1].expired()}
            held[storage.data_ptr()] = storage.nbytes(), StorageWeakRef(storage)
            peak = max(peak, sum(size for size, _ in held.values()))
        return tensor.detach()  # the tensor itself would hold its own graph

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return peak


def peak_gpu_bytes(step: Callable[[], object]) -> int:
    """The most bytes of a GPU that a step takes beyond what was there before it, such as the weights of all nets."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
