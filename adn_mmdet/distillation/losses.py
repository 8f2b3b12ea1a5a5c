"""Losses between super-net and base-net: plain functions of two tensors.

The super-net is the teacher: no gradient reaches its side. Everything is computed in float32, whatever the precision
of the pass. With p and q the softmax of the super-net's and of the base-net's values over the entries i of a row,
KL(p ‖ q) = Σ_i p_i · (log p_i − log q_i) (arXiv 2312.16392, Algorithm 1).

A feature loss takes one level of both nets, (N, C, H, W), and a temperature T that the features are divided by.
``FEATURE_LOSSES`` names them for configs:

===============  ====================================================================================================
``gap_channel``  KL over channels of globally average-pooled features, as the authors train detectors:
                 1/N · Σ_n KL(p_n ‖ q_n), where p_n is the softmax over the C channel means of image n
``channel``      KL over channels, each position on its own: 1/(N·H·W) · Σ_n Σ_hw KL(p_nhw ‖ q_nhw)
``spatial``      KL over positions, each channel on its own: 1/(N·C) · Σ_n Σ_c KL(p_nc ‖ q_nc)
``l2``           mean squared difference, the loss of the authors' YOLO: 1/(N·C·H·W) · Σ (super − base)² / T²
``std_…``        one of these with each row (of l2 each channel of an image) less its mean, over its standard deviation:
                 so it depends on the pattern of the features, not on their scale; l2 is then 2 · (1 − r), averaged,
                 where r is the correlation of both nets' maps of a channel
===============  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def softmax_kl(super_logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL over the last dimension, averaged over the rows: two (R, K) to (); 0 without rows."""
    log_p = F.log_softmax(super_logits.detach().float(), dim=-1)
    log_q = F.log_softmax(base_logits.float(), dim=-1)
    return F.kl_div(log_q, log_p, reduction='sum', log_target=True) / max(1, len(log_p))


def top_k_kl(super_logits: Tensor, base_logits: Tensor, k: int | None = None) -> Tensor:
    """KL of class predictions, as the authors train on ImageNet: two (N, classes) to ().

    1/N · Σ_n KL(p_n ‖ q_n), where p_n is the softmax of the super-net's ``k`` largest logits of image n, and q_n that
    of the base-net's logits of the same classes. Where k is None, or there are no more classes, all are compared.
    """
    if k is not None and k < super_logits.shape[-1]:
        super_logits, classes = super_logits.detach().topk(k, dim=-1)
        base_logits = base_logits.gather(-1, classes)
    return softmax_kl(super_logits, base_logits)


def sigmoid_kl(super_logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL of independent yes/no predictions: two (R, K) to ().

    Σ_r Σ_k KL(Bernoulli(p_rk) ‖ Bernoulli(q_rk)) / max(1, Σ_r max_k p_rk): nearly all rows of a dense head are
    background, so that it is divided by how many rows the super-net takes for objects, as focal loss is.
    """
    super_logits, base_logits = super_logits.detach().float(), base_logits.float()
    p = super_logits.sigmoid()
    yes = p * (F.logsigmoid(super_logits) - F.logsigmoid(base_logits))
    no = (1 - p) * (F.logsigmoid(-super_logits) - F.logsigmoid(-base_logits))
    return (yes + no).sum() / p.max(dim=-1).values.sum().clamp(min=1)


def distribution_kl(super_bins: Tensor, base_bins: Tensor, weights: Tensor) -> Tensor:
    """KL of the sides of boxes as distributions: two (R, 4, bins) of logits, and (R,), to ().

    Σ_r w_r · ¼ Σ_side KL(p_rside ‖ q_rside) / max(1, Σ_r w_r), as localization distillation has it (Zheng et al., arXiv
    2102.12252, equation 3), of GFL's heads.
    """
    log_p = F.log_softmax(super_bins.detach().float(), dim=-1)
    log_q = F.log_softmax(base_bins.float(), dim=-1)
    each = F.kl_div(log_q, log_p, reduction='none', log_target=True).sum(-1).mean(-1)
    return (weights * each).sum() / weights.sum().clamp(min=1)


def relative_l1(super_boxes: Tensor, base_boxes: Tensor, weights: Tensor) -> Tensor:
    """How far boxes lie apart, as a share of what they are: two (R, values), and (R,), to ().

    Σ_r w_r ‖base_r − super_r‖₁ / Σ_r w_r ‖super_r‖₁, whatever a head regresses: deltas, distances, corners.
    """
    super_boxes, base_boxes = super_boxes.detach().float(), base_boxes.float()
    scale = (weights * super_boxes.abs().sum(-1)).sum()
    return (weights * (base_boxes - super_boxes).abs().sum(-1)).sum() / scale.clamp(min=1e-6)


def _feature_loss(
    rows: Callable[[Tensor], Tensor],
    loss: Loss,
    standardised: bool,
    super_feat: Tensor,
    base_feat: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """``loss`` of both nets' features as ``rows``."""
    super_rows, base_rows = rows(super_feat.detach().float()), rows(base_feat.float())
    if standardised:
        super_rows, base_rows = (F.layer_norm(rows, rows.shape[-1:]) for rows in (super_rows, base_rows))
    return loss(super_rows / temperature, base_rows / temperature)


def _maps(feat: Tensor) -> Tensor:
    return feat.flatten(2).flatten(0, 1)


_PLAIN: dict[str, tuple[Callable[[Tensor], Tensor], Loss]] = {
    'gap_channel': (lambda feat: feat.mean((2, 3)), softmax_kl),
    'channel': (lambda feat: feat.flatten(2).transpose(1, 2).flatten(0, 1), softmax_kl),
    'spatial': (_maps, softmax_kl),
    'l2': (_maps, F.mse_loss),
}
FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    prefix + name: partial(_feature_loss, rows, loss, bool(prefix))
    for prefix in ('', 'std_')
    for name, (rows, loss) in _PLAIN.items()
}
