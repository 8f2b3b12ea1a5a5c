"""Strict loading of a detector's weights: what does not fit is an error, not a warning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..backbones.adaptive_depth import AdaptiveDepthBackbone
from ..backbones.features import unwrap
from ..errors import UserError
from ..skip_config import SkipConfig
from .safe_loading import listed, load_from_local, require_sound


def read_weights(
    checkpoint: Mapping[str, Any], source: str | os.PathLike[str] = 'this checkpoint'
) -> dict[str, Tensor]:
    """The model's weights in a checkpoint, without the prefixes that wrappers add.

    Args:
        checkpoint: a bare state_dict, or mmengine's dict with one under ``state_dict``.
        source: the file, for the message.

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
            f'{source} holds {listed(others) or "nothing"} where only weights should be: '
            "give a detector's own, bare or under state_dict (tools/convert_checkpoint.py reads other layouts)"
        )
    weights = dict(weights)
    for prefix in ('module.', 'ema_'):
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not key.startswith('ema_')}


def require_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Refuse weights that are not all of a model's, and of nothing else, by name, shape and kind of number.

    A training that goes on from a checkpoint calls it before the weights are loaded, as mmengine leaves those that are
    missing as they were initialised: ``require_fit(model.state_dict(), read_weights(checkpoint, path), path)``, with
    the model inside any wrapper.

    Args:
        own: the model's ``state_dict()``.
        weights: those of a checkpoint, as :func:`read_weights` returns them.
        source: the file, for the message.

    Raises:
        UserError: they do not fit; names those that differ.
    """
    _require_shapes(own, weights, source)
    missing, unexpected = ([key for key in a if key not in b] for a, b in ((own, weights), (weights, own)))
    _require_names(missing, unexpected, source, 'use the config it was trained with')


def _require_shapes(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    both = [key for key in own if key in weights]
    differing = [key for key in both if weights[key].shape != own[key].shape]
    for key in differing:
        raise UserError(
            f'{source}: {key} has shape {tuple(weights[key].shape)} but the config wants {tuple(own[key].shape)} '
            f'({len(differing)} such weights): use the config it was trained with, and the same num_classes'
        )
    for key in both:
        if own[key].is_floating_point() and not weights[key].is_floating_point():
            raise UserError(
                f'{source}: {key} is of {weights[key].dtype}, but the model has it of {own[key].dtype}: '
                'use an earlier checkpoint, or download it again'
            )


def _require_names(missing: list[str], unexpected: list[str], source: str | os.PathLike[str], hint: str) -> None:
    # Checkpoints with frozen norms may lack a counter that nothing reads.
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    if missing or unexpected:
        raise UserError(
            f'{source} does not fit the config: {_count("missing", missing)}, {_count("unexpected", unexpected)}; '
            f'{hint}'
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
        UserError: the file cannot be read, or its weights do not fit; says which.
    """
    detector = unwrap(model)
    weights = read_weights(load_from_local(path, map_location='cpu') if checkpoint is None else checkpoint, path)
    require_sound(weights, path)
    _require_shapes(detector.state_dict(), weights, path)
    result = detector.load_state_dict(weights, strict=False)  # the backbone refuses another stage split
    if not allow_mismatch:
        hint = 'use the config it was trained with, or --allow-mismatch'
        _require_names(result.missing_keys, result.unexpected_keys, path, hint)
    _require_trained(detector, path, codes, allow_untrained)


def _count(kind: str, keys: list[str]) -> str:
    return f'{len(keys)} {kind}' + (f' ({listed(keys)})' if keys else '')


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
