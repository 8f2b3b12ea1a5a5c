"""Sigmoid focal loss (Lin et al., 2017, equation 5) and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import widened


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` with -α (1 - p)^γ log p at the target and -(1 - α) p^γ log(1 - p) elsewhere.

    Args:
        input: logits (N, C).
        target: classes (N,) from 0 to C; C is the background.
        weight: (C,) of the classes, or empty.
        output: (N, C).
        gamma: how much easy examples count less.
        alpha: what a positive counts against a negative.
    """
    p, log_p, log_not_p = _probabilities(input)
    positive = -alpha * (1 - p).pow(gamma) * log_p
    negative = -(1 - alpha) * p.pow(gamma) * log_not_p
    output.copy_(_choose(target, weight, positive, negative))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` (N, C) with the derivative of each loss by its logit."""
    p, log_p, log_not_p = _probabilities(input)
    positive = -alpha * (1 - p).pow(gamma) * (1 - p - gamma * p * log_p)
    negative = -(1 - alpha) * p.pow(gamma) * (gamma * (1 - p) * log_not_p - p)
    grad_input.copy_(_choose(target, weight, positive, negative))


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, log p and log(1 - p); the logarithms end at float32's smallest number, as in mmcv."""
    p = widened(logits).sigmoid()
    smallest = torch.finfo(torch.float32).tiny
    return p, p.clamp(min=smallest).log(), (1 - p).clamp(min=smallest).log()


def _choose(target: Tensor, weight: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    classes = torch.arange(positive.shape[1], device=target.device)
    chosen = torch.where(target[:, None] == classes, positive, negative)
    if not weight.numel():
        return chosen
    # mmcv reads behind the end of the weights where the target is the background: a background counts once.
    return chosen * torch.cat([weight, weight.new_ones(1)])[target][:, None]
