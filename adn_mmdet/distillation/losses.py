"""Losses between super-net and base-net: plain functions of two tensors.

The super-net is the teacher: no gradient reaches its side. Everything is computed in float32, whatever the precision
of the pass. With p and q the softmax of the super-net's and of the base-net's values over the entries i of a row,
KL(p ‖ q) = Σ_i p_i · (log p_i − log q_i) (arXiv 2312.16392, Algorithm 1).

Feature losses take one pyramid level of both nets, (N, C, H, W), a temperature T by which the features are divided, and
``standardised``: whether each row has its mean taken off and is divided by its standard deviation before that, so
that the loss depends on the pattern of the features and not on their scale. ``FEATURE_LOSSES`` names them for configs;
the standardised ones begin with ``std_``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

FeatureLoss = Callable[[Tensor, Tensor, float], Tensor]


def softmax_kl(super_logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL over the last dimension, averaged over the rows: two (R, K) to (); 0 without rows."""
    log_p = F.log_softmax(super_logits.detach().float(), dim=-1)
    log_q = F.log_softmax(base_logits.float(), dim=-1)
    return F.kl_div(log_q, log_p, reduction='sum', log_target=True) / max(1, len(log_p))


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


def _feature_kl(
    rows: Callable[[Tensor], Tensor], super_feat: Tensor, base_feat: Tensor, temperature: float, standardised: bool
) -> Tensor:
    super_rows, base_rows = rows(super_feat.float()), rows(base_feat.float())
    if standardised:
        super_rows, base_rows = _standardise(super_rows), _standardise(base_rows)
    return softmax_kl(super_rows / temperature, base_rows / temperature)


def _standardise(rows: Tensor) -> Tensor:
    return F.layer_norm(rows, rows.shape[-1:])


def gap_channel_kl(
    super_feat: Tensor, base_feat: Tensor, temperature: float = 1.0, standardised: bool = False
) -> Tensor:
    """KL over channels of globally average-pooled features, as the authors train detectors.

    1/N · Σ_n KL(p_n ‖ q_n), where p_n is the softmax over the C channel means of image n.
    """
    return _feature_kl(lambda feat: feat.mean((2, 3)), super_feat, base_feat, temperature, standardised)


def channel_kl(super_feat: Tensor, base_feat: Tensor, temperature: float = 1.0, standardised: bool = False) -> Tensor:
    """KL over channels, each position on its own.

    1/(N·H·W) · Σ_n Σ_hw KL(p_nhw ‖ q_nhw), where p_nhw is the softmax over the C channels at position hw of image n.
    """

    def positions(feat: Tensor) -> Tensor:
        return feat.flatten(2).transpose(1, 2).flatten(0, 1)

    return _feature_kl(positions, super_feat, base_feat, temperature, standardised)


def spatial_kl(super_feat: Tensor, base_feat: Tensor, temperature: float = 1.0, standardised: bool = False) -> Tensor:
    """KL over positions, each channel on its own.

    1/(N·C) · Σ_n Σ_c KL(p_nc ‖ q_nc), where p_nc is the softmax over the H·W positions of channel c of image n.
    """
    return _feature_kl(lambda feat: feat.flatten(2).flatten(0, 1), super_feat, base_feat, temperature, standardised)


def l2(super_feat: Tensor, base_feat: Tensor, temperature: float = 1.0, standardised: bool = False) -> Tensor:
    """Mean squared difference, the loss of the authors' YOLO; standardised a channel of an image.

    1/(N·C·H·W) · Σ (super − base)² / T². Standardised it is 2 · (1 − r), averaged over channels, where r is the
    correlation of both nets' maps of a channel.
    """
    super_rows, base_rows = (feat.float().flatten(2) for feat in (super_feat.detach(), base_feat))
    if standardised:
        super_rows, base_rows = _standardise(super_rows), _standardise(base_rows)
    return F.mse_loss(base_rows, super_rows) / temperature**2


_PLAIN = {'gap_channel': gap_channel_kl, 'channel': channel_kl, 'spatial': spatial_kl, 'l2': l2}
FEATURE_LOSSES: dict[str, FeatureLoss] = {
    **_PLAIN,
    **{f'std_{name}': partial(loss, standardised=True) for name, loss in _PLAIN.items()},
}
