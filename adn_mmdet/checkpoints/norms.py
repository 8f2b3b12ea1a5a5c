"""Norms of one sub-network: their statistics, estimated again on training images, in a small file beside the weights.

Training runs super-net and base-net only, and may freeze statistics that were merely cloned, so that another depth has
none of its own.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones.adaptive_depth import Skip, find_backbone
from ..backbones.features import unwrap
from ..config import require_output, require_sections
from ..datasets.images import name_unreadable
from ..datasets.preparation import prepare_data
from ..errors import UserError
from ..files import file_sha256
from ..skip_config import SkipConfig
from .loading import load_for_testing, read_weights, require_fit
from .safe_loading import listed, load_from_local, require_sound
from .saving import save

STATISTICS = ('running_mean', 'running_var')
KEYS = {'skip', 'checkpoint_sha256', 'num_images', 'statistics'}


def norms_at(detector: nn.Module, skip: Skip) -> dict[str, _BatchNorm]:
    """The batch norms with statistics that backbone and neck use at ``skip``, by name."""
    backbone = find_backbone(detector)
    idle = {
        module for part in (*backbone.skipped_blocks(skip), *backbone.idle_norms(skip)) for module in part.modules()
    }
    neck = getattr(detector, 'neck', None)
    used = {module for part in (backbone, neck) if part is not None for module in part.modules()} - idle
    return {
        name: module
        for name, module in detector.named_modules()
        if module in used and isinstance(module, _BatchNorm) and module.track_running_stats
    }


def statistics_of(norms: Mapping[str, _BatchNorm]) -> dict[str, Tensor]:
    """The buffers ``<norm>.running_mean`` and ``<norm>.running_var``, each (C,)."""
    return {f'{name}.{kind}': getattr(norm, kind) for name, norm in norms.items() for kind in STATISTICS}


@torch.no_grad()
def estimate_statistics(model: nn.Module, skip: Skip, batches: Iterable[Any]) -> tuple[dict[str, Tensor], int]:
    """Average mean and variance of the features that reach each batch norm of backbone and neck at ``skip``.

    Every batch counts the same, as in ``torch.optim.swa_utils.update_bn``; the variance is unbiased within a batch.

    Args:
        model: a detector; it is left as it is.
        skip: the sub-network.
        batches: those of a training data loader; the annotations are not used.

    Returns:
        The statistics of the norms of :func:`norms_at`, ``<norm>.running_mean`` and ``<norm>.running_var``, each (C,);
        and the number of images.

    Raises:
        UserError: there is no such norm, or no image.
    """
    original = unwrap(model)
    detector = copy.deepcopy(original).eval()
    find_backbone(detector).set_skip(skip)
    norms = norms_at(detector, skip)
    if not norms:
        raise UserError(
            f'{type(detector).__name__} has no batch norm in backbone and neck at {skip}: there is none to recalibrate'
        )
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
        norm.train()
    num_images = 0
    for batch in batches:
        inputs = detector.data_preprocessor(batch, training=True)['inputs']
        detector.extract_feat(inputs)
        num_images += len(inputs)
    if not num_images:
        raise UserError('there are no training images to recalibrate norms on: check train_dataloader in the config')
    ran = {name: norm for name, norm in norms.items() if norm.num_batches_tracked}
    statistics = {
        **statistics_of(norms_at(original, skip)),
        **statistics_of(ran),
    }  # a neck may have norms that never run
    return {key: value.cpu().clone() for key, value in statistics.items()}, num_images


def recalibrate(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    skip: str,
    num_batches: int = 100,
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Estimate the statistics of one sub-network on a config's training data, and save them beside the checkpoint.

    Args:
        cfg: a config with a ``train_dataloader``; its ``randomness.seed`` (else 0) picks the images.
        checkpoint: local weights.
        skip: one code.
        num_batches: how many batches; fewer where an epoch has fewer.
        out: the file; None takes ``<checkpoint>.norms_<code>.pth``.

    Returns:
        The file. It holds the code (``skip``), ``checkpoint_sha256``, ``num_images`` and the ``statistics`` by key.

    Raises:
        UserError: for whatever a user can get wrong; a file that holds something else is never replaced.
    """
    checkpoint = os.path.expanduser(checkpoint)
    if not isinstance(num_batches, int) or num_batches < 1:
        raise UserError(f'--batches should be at least 1, but got {num_batches}')
    require_sections(cfg, 'train_dataloader')
    prepare_data(cfg, 'train')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    detector = MODELS.build(cfg.model)
    code = SkipConfig.parse(skip, find_backbone(detector).letter_groups)
    path = Path(out or Path(checkpoint).with_suffix(f'.norms_{code}.pth'))
    require_output(path)
    if path.exists() and load_from_local(path).keys() != KEYS:
        raise UserError(f'{path} exists and holds something else than norms: give another file for --out')
    load_for_testing(detector, checkpoint)
    seed = cfg.get('randomness', {}).get('seed') or 0
    set_random_seed(seed)
    loader = name_unreadable(Runner.build_dataloader(cfg.train_dataloader, seed=seed))
    batches = track(islice(loader, num_batches), f'Recalibrating {code}', num_batches, console=Console(stderr=True))
    statistics, num_images = estimate_statistics(detector.to(get_device()), code, batches)
    require_sound(statistics, f'{checkpoint} at {code}')
    content = {'skip': str(code), 'checkpoint_sha256': file_sha256(checkpoint), 'num_images': num_images}
    save({**content, 'statistics': statistics}, path)
    return path


def load_norms(
    model: nn.Module,
    path: str | os.PathLike[str],
    checkpoint_sha256: str,
    codes: Iterable[SkipConfig],
) -> None:
    """Put recalibrated statistics into a detector, or into the detector inside a wrapper.

    Args:
        model: a detector with the weights of the checkpoint.
        path: a file of :func:`recalibrate`.
        checkpoint_sha256: :func:`~adn_mmdet.files.file_sha256` of that checkpoint.
        codes: the sub-networks that will be tested.

    Raises:
        UserError: the file cannot be read, is of another sub-network or checkpoint, or does not fit the detector.
    """
    content = load_from_local(path, map_location='cpu')
    statistics = content.get('statistics')
    if content.keys() != KEYS or not isinstance(statistics, Mapping):
        raise UserError(f'{path} holds no recalibrated norms: make them with tools/recalibrate.py')
    skip, tested = content['skip'], [str(code) for code in codes]
    if tested != [skip]:
        raise UserError(
            f'{path} is for {listed([skip])} alone, but the test is of {", ".join(tested) or "a net without depths"}'
        )
    if content['checkpoint_sha256'] != checkpoint_sha256:
        raise UserError(f'{path} was made from another checkpoint: make it again with tools/recalibrate.py')
    own = statistics_of(norms_at(unwrap(model), skip))
    require_fit(own, read_weights(statistics, path), path)
    # Not load_state_dict: the backbone takes weights without `_skip` for plain ones, and clones.
    for key, value in own.items():
        value.copy_(statistics[key])
