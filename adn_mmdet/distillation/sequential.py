"""Going back through one pass before the next begins, inside one forward (footnote 1 of arXiv 2312.16392).

The gradients of the first pass are taken at once, which frees its activations, and are handed on by the one backward
that follows. So the model is called once, and every gradient reaches it once: distributed training, gradient
accumulation and clipping see no difference. Gradients held in between cost as much as the parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients are known already: its backward returns them, times the gradient of the loss."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad_output * gradient for gradient in ctx.gradients)


def backpropagated(losses: dict[str, Any], model: nn.Module, loss_scale: float = 1.0) -> dict[str, Any]:
    """Go back through a pass of ``model``, and return its losses without their graph.

    Args:
        losses: a loss dict as mmdet's ``parse_losses`` adds up.
        model: what the gradients are for.
        loss_scale: what the sum is multiplied by on the way back, and its gradients divided by.

    Returns:
        The same entries as scalars; in the backward of their sum every parameter gets the gradient it would have had.

    Raises:
        UserError: a part of ``model`` uses reentrant activation checkpointing.
    """
    total = total_loss(losses)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.autocast(total.device.type, enabled=False):
            gradients = torch.autograd.grad(total * loss_scale, parameters, allow_unused=True)
    except RuntimeError as error:
        # torch's own limit: such a part goes back by a backward() of its own, which writes into every .grad it meets.
        if 'use_reentrant' not in str(error):
            raise
        raise UserError(
            "mode='sequential' cannot go back through reentrant activation checkpointing, which a part of this "
            "detector outside the backbone uses: set its with_cp=False, or mode='joint'"
        ) from error
    torch.clear_autocast_cache()  # half-precision copies of the weights, whose graph is gone
    reached = [(p, g / loss_scale) for p, g in zip(parameters, gradients) if g is not None]
    detached = {name: _mean(value).detach() for name, value in losses.items()}
    # The sum of all entries gets one gradient, so that it may enter anywhere: at the first of them.
    first = next(name for name in detached if 'loss' in name)
    detached[first] = _KnownGradients.apply(detached[first], [g for _, g in reached], *(p for p, _ in reached))
    return detached


def total_loss(losses: dict[str, Any]) -> Tensor:
    """The sum of a loss dict, as mmengine's ``parse_losses`` has it."""
    return sum((_mean(value) for name, value in losses.items() if 'loss' in name), start=torch.zeros(()))


def _mean(value: Any) -> Tensor:
    """One entry of a loss dict, a tensor or a list of tensors, as a scalar."""
    return sum(part.mean() for part in value) if isinstance(value, (list, tuple)) else value.mean()
