"""Takes the network out of a checkpoint of any layout, for an adaptive-depth backbone to start from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from ..config import require_output
from ..errors import UserError
from ..files import file_sha256
from .architectures import FAMILIES, HEADS, KNOWN, RESNETS, Family, as_it_is
from .safe_loading import listed, load_from_local, require_sound
from .saving import save


@dataclass(frozen=True)
class Conversion:
    """The weights of an adaptive-depth backbone, and what became of those that a checkpoint held."""

    weights: dict[str, Tensor]
    arch: str
    averaged: bool  # whether they are the exponential moving average
    prefix: str  # taken off every name
    renamed: dict[str, str]
    dropped: list[str]
    num_untrained_norms: int  # not held; cloned from their twins, with a warning, when the weights are loaded

    def report(self, title: str) -> Table:
        """A table of what was mapped, cloned and dropped."""
        table = Table('', 'number', 'which', title=title)
        rows = {
            f'mapped, without the prefix {self.prefix}' if self.prefix else 'mapped': list(self.weights),
            'of these renamed': [f'{old} → {new}' for old, new in self.renamed.items()],
            'dropped': self.dropped,
        }
        for what, names in rows.items():
            table.add_row(what, str(len(names)), listed(names))
        cloned = 'the skipped sub-networks are untrained' if self.num_untrained_norms else ''
        table.add_row('norms cloned when loaded', str(self.num_untrained_norms), cloned)
        return table


def choose_weights(
    checkpoint: Mapping[str, Any], ema: bool | None = None, prefer_ema: bool | None = None
) -> tuple[dict[str, Tensor], bool]:
    """The weights in a checkpoint: bare, of a training script (``model``, ``model_ema``), or of mmengine.

    Args:
        checkpoint: what the file holds.
        ema: whether to take the exponential moving average; None where there is only one of the two.
        prefer_ema: what to take of both where ``ema`` is None.

    Returns:
        The tensors by name, and whether they are the average.

    Raises:
        UserError: there is a choice to make, or not the weights that were asked for.
    """
    if 'ema_state_dict' in checkpoint:  # mmengine's EMAHook saves the two in each other's place
        found = {False: checkpoint['ema_state_dict'], True: checkpoint.get('state_dict')}
    else:
        model = checkpoint.get('model', checkpoint.get('state_dict'))
        found = {False: model, True: checkpoint.get('model_ema')}
    found = {averaged: weights for averaged, weights in found.items() if isinstance(weights, Mapping)}
    found = found or {False: checkpoint}
    ema = prefer_ema if ema is None and len(found) == 2 else ema
    if ema is None and len(found) == 2:
        raise UserError("holds the model's own weights and their moving average: say --no-ema or --ema")
    averaged = next(iter(found)) if ema is None else ema
    if averaged not in found:
        kinds = {False: "the model's own weights", True: 'a moving average'}
        raise UserError(f'holds {kinds[not averaged]} alone: leave {"--ema" if averaged else "--no-ema"} out')
    return {str(key): value for key, value in found[averaged].items() if isinstance(value, Tensor)}, averaged


def convert_weights(weights: Mapping[str, Tensor], averaged: bool = False, arch: str | None = None) -> Conversion:
    """Rename the weights of a network as our backbones have them, and check that they fit.

    Args:
        weights: of a classifier, a detector or a backbone, of the authors, torchvision or OpenMMLab.
        averaged: whether they are a moving average.
        arch: what they should be; None takes any of ``KNOWN``.

    Raises:
        UserError: they are of another architecture or stage split, or are not finite.
    """
    family, first, prefix = _find_family(weights)
    inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    names = {key: family.firsts[first](key) for key in inner if not key.startswith(HEADS)}
    kept = {name: inner[key] for key, name in names.items()}
    if family.firsts[first] is not as_it_is:
        kept = _of_family(family.values, family, kept)
    found = _of_family(family.find, family, kept)
    if arch not in (None, found):
        raise UserError(f'holds {found}, not {arch}')
    if found in RESNETS and RESNETS[found]['avg_down']:
        names |= _mmdet_names(kept)
        kept = {names.get(key, key): value for key, value in kept.items()}
    num_untrained_norms = _require_fit(kept, found, family)
    require_sound(kept, found)
    dropped = [key for key in weights if not key.startswith(prefix) or key.removeprefix(prefix).startswith(HEADS)]
    renamed = {key: name for key, name in names.items() if key != name}
    return Conversion(kept, found, averaged, prefix, renamed, dropped, num_untrained_norms)


def convert_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    ema: bool | None = None,
    arch: str | None = None,
    trust: bool = False,
    prefer_ema: bool | None = None,
) -> Conversion:
    """Write the network of a checkpoint to a file that ``init_cfg=dict(type='Pretrained', checkpoint=out)`` takes.

    Args:
        source: a checkpoint of any layout.
        out: the file, ``{state_dict, meta}`` of tensors and strings; it is replaced if it exists.
        ema: as in :func:`choose_weights`.
        arch: as in :func:`convert_weights`.
        trust: unpickle whatever the checkpoint holds, which may run code of whoever made it.
        prefer_ema: what to take of both where ``ema`` is None.

    Raises:
        UserError: it cannot be read, converted or written; nothing was written.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if out.resolve() == source.resolve():
        raise UserError(f'{out} is the source: give another file to write')
    require_output(out)
    checkpoint = load_from_local(source, map_location='cpu', trust=trust)
    try:
        conversion = convert_weights(*choose_weights(checkpoint, ema, prefer_ema), arch)
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    meta = dict(
        arch=conversion.arch,
        ema=conversion.averaged,
        source=source.name,
        source_sha256=file_sha256(source),
    )
    save(dict(state_dict=conversion.weights, meta=meta), out)
    return conversion


def _find_family(weights: Mapping[str, Tensor]) -> tuple[Family, str, str]:
    """The kind of network, by whose names, and what stands before them, such as ``module.`` or ``backbone.body.``."""
    for family in FAMILIES:
        for first in family.firsts:
            prefixes = [key.removesuffix(first) for key in weights if key.endswith(first)]
            prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(('.', '_'))]
            if len(prefixes) > 1:
                raise UserError(
                    f'holds {len(prefixes)} {family.name}s ({listed(prefixes)}): save the weights of one alone'
                )
            if prefixes:
                return family, first, prefixes[0]
    given = listed(weights) or 'no tensors'
    others = ', '.join(family.name for family in FAMILIES[1:])
    raise UserError(f'holds no ResNet of bottlenecks (nor {others}) but {given}: known are {", ".join(KNOWN)}')


def _of_family(function: Any, family: Family, *args: Any) -> Any:
    """Call what reads weights by their names; one that is missing, or has another number of axes, is no bug of ours."""
    try:
        return function(*args)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f'looks like a {family.name}, but lacks {error}') from error


def _mmdet_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The vd shortcut of stage 1: mmdet pools there too, by one pixel, so that its conv and norm move up."""
    if 'layer1.0.downsample.2.weight' in weights:  # mmdet's own
        return {}
    parts = [key.split('.', 4) for key in weights if key.startswith('layer1.0.downsample.')]
    return {'.'.join(part): '.'.join([*part[:3], str(int(part[3]) + 1), part[4]]) for part in parts}


def _require_fit(weights: Mapping[str, Tensor], arch: str, family: Family) -> int:
    """Refuse what our backbone does not take as it is; return how many norms it would clone."""
    model = _of_family(family.build, family, arch, weights)
    own = model.state_dict()
    for key, value in weights.items():
        if value.shape != own.get(key, value).shape:
            raise UserError(f'{key} has shape {tuple(value.shape)}, but {arch} has {tuple(own[key].shape)}')
        if own.get(key, value).is_floating_point() and not value.is_floating_point():
            raise UserError(f'{key} is of {value.dtype}, but {arch} has it of {own[key].dtype}')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of norms to clone, which the report counts, and that nothing is copied
        result = model.load_state_dict(weights, strict=False)  # refuses another stage split
    for kind, keys in (('lacks', result.missing_keys), ('has, beyond that,', result.unexpected_keys)):
        if keys:
            raise UserError(f'looks like {arch}, but {kind} {listed(keys)} ({len(keys)} weights)')
    return model.num_untrained_norms
