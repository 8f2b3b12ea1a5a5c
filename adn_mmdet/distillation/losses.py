"""Per-level KL divergence between super-net and base-net features: plain functions of two tensors.

Every function takes the super-net's and the base-net's feature map of one pyramid level, both (N, C, H, W), and gives
a scalar in float32, whatever the precision of the pass. The super-net is the teacher: no gradient reaches its
features. With p and q the softmax of the super-net's and of the base-net's feature over the entries i, at temperature
T, KL(p ‖ q) = Σ_i p_i · (log p_i − log q_i) (arXiv 2312.16392, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

FeatureKL = Callable[[Tensor, Tensor, float], Tensor]


def _mean_kl(super_logits: Tensor, base_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(super / T) ‖ softmax(base / T)) over the last dimension, averaged over the rows: (R, K) to ()."""
    log_p = F.log_softmax(super_logits.detach().float() / temperature, dim=-1)
    log_q = F.log_softmax(base_logits.float() / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction='batchmean', log_target=True)


def gap_channel_kl(super_feat: Tensor, base_feat: Tensor, temperature: float = 1.0) -> Tensor:
    """KL over channels of globally average-pooled features, as the authors train detectors.

    1/N · Σ_n KL(p_n ‖ q_n), where p_n is the softmax over the C channel means of image n.
    """
    return _mean_kl(super_feat.float().mean((2, 3)), base_feat.float().mean((2, 3)), temperature)


def spatial_kl(super_feat: Tensor, base_feat: Tensor, temperature: float = 1.0) -> Tensor:
    """KL over positions, each channel on its own.

    1/(N·C) · Σ_n Σ_c KL(p_nc ‖ q_nc), where p_nc is the softmax over the H·W positions of channel c of image n.
    """
    return _mean_kl(super_feat.flatten(2).flatten(0, 1), base_feat.flatten(2).flatten(0, 1), temperature)


FEATURE_KLS: dict[str, FeatureKL] = {'gap_channel': gap_channel_kl, 'spatial': spatial_kl}
