"""Strict loading of a detector's weights for testing: what does not fit is an error, not a warning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..backbones.adaptive_depth import AdaptiveDepthBackbone
from ..backbones.features import unwrap
from ..errors import UserError
from ..skip_config import SkipConfig
from .safe_loading import load_from_local


def read_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's weights in a checkpoint, without the prefixes that wrappers add.

    Args:
        checkpoint: a bare state_dict, or mmengine's dict with one under ``state_dict``.

    Returns:
        The weights by name; ``module.`` (DDP) is taken off, and ``ema_*`` copies beside the weights are left out.

    Raises:
        UserError: it holds something else than weights.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping):
        weights = {'state_dict': weights}
    others = [key for key, value in weights.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others or not weights:
        raise UserError(
            f'this checkpoint holds {", ".join(map(str, others[:3])) or "nothing"} where only weights should be: '
            "give a detector's own, bare or under state_dict (tools/convert_checkpoint.py reads other layouts)"
        )
    weights = dict(weights)
    for prefix in ('module.', 'ema_'):
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not key.startswith('ema_')}


def require_finite(weights: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Refuse weights that no training should have left.

    Raises:
        UserError: one holds a NaN or an infinity; names it and the file that it is from.
    """
    # A sum is several times faster than isfinite, and finite only where all of its terms are; it may overflow.
    bad = [key for key, value in weights.items() if not value.sum().isfinite() and not value.isfinite().all()]
    if bad:
        raise UserError(
            f'{source}: {bad[0]} holds NaN or infinity ({len(bad)} such weights): use an earlier checkpoint, '
            'or get it anew'
        )


def load_for_testing(
    model: nn.Module,
    path: str | os.PathLike[str],
    codes: Iterable[SkipConfig] = (),
    allow_untrained: bool = False,
    allow_mismatch: bool = False,
    checkpoint: Mapping[str, Any] | None = None,
) -> None:
    """Load a checkpoint into a detector, or into the detector inside a wrapper.

    Args:
        model: a detector.
        path: a local checkpoint.
        codes: the sub-networks that will be tested.
        allow_untrained: test skipped sub-networks although their norms were only cloned.
        allow_mismatch: go on although weights are missing or left over.
        checkpoint: the content of ``path`` where it was read before.

    Raises:
        UserError: the file cannot be read, or its weights do not fit or are not finite; says which.
    """
    detector = unwrap(model)
    weights = read_weights(load_from_local(path, map_location='cpu') if checkpoint is None else checkpoint)
    require_finite(weights, path)
    own = detector.state_dict()
    misshapen = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    if misshapen:
        key = misshapen[0]
        raise UserError(
            f'{path}: {key} has shape {tuple(weights[key].shape)} but the config wants {tuple(own[key].shape)} '
            f'({len(misshapen)} such weights): use the config it was trained with, and the same num_classes'
        )
    result = detector.load_state_dict(weights, strict=False)  # the backbone refuses another stage split
    # Checkpoints with frozen norms may lack a counter that nothing reads.
    missing = [key for key in result.missing_keys if not key.endswith('num_batches_tracked')]
    if (missing or result.unexpected_keys) and not allow_mismatch:
        raise UserError(
            f'{path} does not fit the config: {_count("missing", missing)}, '
            f'{_count("unexpected", result.unexpected_keys)}; use the config it was trained with, or --allow-mismatch'
        )
    _require_trained(detector, path, codes, allow_untrained)


def _count(kind: str, keys: list[str]) -> str:
    shown = ', '.join(keys[:3]) + (', …' if len(keys) > 3 else '')
    return f'{len(keys)} {kind}' + (f' ({shown})' if keys else '')


def _require_trained(
    detector: nn.Module, path: str | os.PathLike[str], codes: Iterable[SkipConfig], allow_untrained: bool
) -> None:
    """Refuse to test what was never trained."""
    untrained = sum(m.num_untrained_norms for m in detector.modules() if isinstance(m, AdaptiveDepthBackbone))
    skipping = [str(code) for code in codes if any(code)]
    if untrained and skipping and not allow_untrained:
        raise UserError(
            f'{path} has no skip-aware norms, so that {", ".join(skipping)} would be tested untrained: '
            'test --skip FFFF, or say --allow-untrained'
        )
