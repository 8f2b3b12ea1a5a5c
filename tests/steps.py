"""Optimiser steps, watched: raw batches by seed, and the weights and gradients that each step began with."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.testing import demo_mm_inputs

Record = dict[str, tuple[torch.Tensor, torch.Tensor]]


def raw_batch(detector: str, seed: int, num_items: list[int] | None = None, size: int = 64) -> dict[str, Any]:
    """Two images of noise with objects, as a data loader gives them; the RoI samplers that follow are seeded too."""
    torch.manual_seed(seed)
    items = num_items or [1 + seed, 2]
    data = demo_mm_inputs(2, [[3, size, size]] * 2, num_items=items, num_classes=3, with_mask=detector == 'mask_rcnn')
    data['inputs'] = list(torch.randint(256, (2, 3, size, size), dtype=torch.uint8))
    return data


def watched_sgd(model: torch.nn.Module, **options: Any) -> tuple[torch.optim.SGD, list[Record]]:
    """An optimiser, and the list to which each of its steps adds (weight, gradient) by name before it moves."""
    optimizer = torch.optim.SGD(model.parameters(), **options)
    records: list[Record] = []

    def record(*_: Any) -> None:
        parameters = {name: p for name, p in model.named_parameters() if p.grad is not None}
        records.append({name: (p.detach().clone(), p.grad.clone()) for name, p in parameters.items()})

    optimizer.register_step_pre_hook(record)
    return optimizer, records


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry that is expected."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)).item()
