"""Optimiser steps, watched, and the loss that they should follow, written out from stock forwards."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.testing import demo_mm_inputs

ALPHA, GT_WEIGHT, KD_WEIGHT, TEMPERATURE = 0.3, 0.5, 2.0, 3.0  # no term has a weight of 1
SETTINGS = dict(alpha=ALPHA, gt_weight=GT_WEIGHT, kd_weight=KD_WEIGHT, temperature=TEMPERATURE)
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


def reference_loss(plain: torch.nn.Module, data: dict[str, Any]) -> torch.Tensor:
    """The loss of a raw batch, of a detector that has no distillation attached, by the formula of SETTINGS.

    α·L(super) + (1−α)·[gt_weight·L(base) + kd_weight·T²·Σ KL(super ‖ base)]
    """
    data = plain.data_preprocessor(data, True)
    feats: list[tuple[torch.Tensor, ...]] = []
    total = torch.zeros((), device=data['inputs'].device)
    handle = plain.neck.register_forward_hook(lambda _module, _inputs, output: feats.append(output))
    for code, weight in (('FFFF', ALPHA), ('TTTT', (1 - ALPHA) * GT_WEIGHT)):
        with plain.backbone.using_skip(code):
            total = total + weight * plain.parse_losses(plain(**data, mode='loss'))[0]
    handle.remove()
    for super_feat, base_feat in list(zip(*feats))[: 3 if hasattr(plain, 'bbox_head') else 4]:
        log_p = (super_feat.detach().float().mean((2, 3)) / TEMPERATURE).log_softmax(1)
        log_q = (base_feat.float().mean((2, 3)) / TEMPERATURE).log_softmax(1)
        kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        total = total + (1 - ALPHA) * KD_WEIGHT * TEMPERATURE**2 * kl
    return total


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those that there are, by name."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
