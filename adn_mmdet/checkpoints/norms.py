"""Norm recalibration: the batch-norm statistics of one chosen sub-network, estimated anew on training images.

Training runs super-net and base-net only, and may freeze statistics that were merely cloned; a depth that is deployed
can be given its own. The weights stay as they are, so that the result is a small file beside the checkpoint.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterable
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
from ..config import require_writable
from ..datasets.images import name_unreadable
from ..datasets.preparation import prepare_data
from ..errors import UserError
from ..files import file_sha256, write_atomically
from ..skip_config import SkipConfig
from .loading import load_for_testing
from .safe_loading import load_from_local

KEYS = {'skip', 'checkpoint_sha256', 'num_images', 'statistics'}


@torch.no_grad()
def estimate_statistics(model: nn.Module, skip: Skip, batches: Iterable[Any]) -> tuple[dict[str, Tensor], int]:
    """Average mean and variance of the features that reach each batch norm of backbone and neck at ``skip``.

    Every batch counts the same, as in ``torch.optim.swa_utils.update_bn``; the variance is unbiased within a batch.

    Args:
        model: a detector; it is left as it is.
        skip: the sub-network.
        batches: what a training data loader gives; the annotations are not used.

    Returns:
        The statistics of the norms that ran, ``<norm>.running_mean`` and ``<norm>.running_var``, each (C,); and the
        number of images.

    Raises:
        UserError: no batch norm ran.
    """
    detector = copy.deepcopy(unwrap(model)).eval()
    find_backbone(detector).set_skip(skip)
    norms = {
        name: module
        for name, module in detector.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
        norm.train()
    ran: dict[str, _BatchNorm] = {}
    num_images = 0
    for batch in batches:
        inputs = detector.data_preprocessor(batch, training=True)['inputs']
        detector.extract_feat(inputs)
        num_images += len(inputs)
        ran = {name: norm for name, norm in norms.items() if norm.num_batches_tracked}
        if not ran:
            break
    if not ran:
        raise UserError(
            f'{type(detector).__name__} has no batch norm that ran in backbone and neck at {skip} '
            f'({num_images} images seen): there is nothing to recalibrate'
        )
    names = ('running_mean', 'running_var')
    return {f'{key}.{name}': getattr(norm, name).cpu() for key, norm in ran.items() for name in names}, num_images


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
    if num_batches < 1:
        raise UserError(f'--batches should be at least 1, but got {num_batches}')
    if not cfg.get('train_dataloader'):
        raise UserError(f'{cfg.filename} has no train_dataloader, whose images the norms are recalibrated on')
    prepare_data(cfg, 'train')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    detector = MODELS.build(cfg.model)
    code = SkipConfig.parse(skip, find_backbone(detector).num_stages)
    path = Path(out or Path(checkpoint).with_suffix(f'.norms_{code}.pth'))
    if path.exists() and load_from_local(path).keys() != KEYS:
        raise UserError(f'{path} exists and holds something else than norms: give another file for --out')
    load_for_testing(detector, checkpoint)
    require_writable(path.parent)
    seed = cfg.get('randomness', {}).get('seed') or 0
    set_random_seed(seed)
    loader = name_unreadable(Runner.build_dataloader(cfg.train_dataloader, seed=seed))
    batches = track(islice(loader, num_batches), f'Recalibrating {code}', num_batches, console=Console(stderr=True))
    statistics, num_images = estimate_statistics(detector.to(get_device()), code, batches)
    content = {'skip': str(code), 'checkpoint_sha256': file_sha256(checkpoint), 'num_images': num_images}
    with io.BytesIO() as file:
        torch.save({**content, 'statistics': statistics}, file)
        write_atomically(path, file.getvalue())
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
    if content.keys() != KEYS:
        raise UserError(f'{path} holds no recalibrated norms: make them with tools/recalibrate.py')
    skip, tested = content['skip'], [str(code) for code in codes]
    if tested != [skip]:
        raise UserError(f'{path} is for {skip} alone, but the test is of {", ".join(tested) or "a net without depths"}')
    if content['checkpoint_sha256'] != checkpoint_sha256:
        raise UserError(f'{path} was made from another checkpoint: make it anew with tools/recalibrate.py')
    buffers = dict(unwrap(model).named_buffers())
    for key, value in content['statistics'].items():
        if key not in buffers or buffers[key].shape != value.shape:
            raise UserError(f'{path} does not fit the config: it holds {key} of shape {tuple(value.shape)}')
    # Not load_state_dict: the backbone takes weights without `_skip` for plain ones, and clones.
    for key, value in content['statistics'].items():
        buffers[key].copy_(value)
