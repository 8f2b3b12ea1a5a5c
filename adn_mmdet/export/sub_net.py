"""Exports one sub-network of an any-depth detector, for users who have mmdet but not this package."""

from __future__ import annotations

import copy
import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones.adaptive_depth import AdaptiveDepthBackbone, SkippablePart, find_backbone
from ..checkpoints.loading import load_for_testing
from ..checkpoints.norms import load_norms
from ..checkpoints.safe_loading import load_from_local
from ..config import coco_dataset, require_writable
from ..errors import UserError
from ..files import file_sha256, name_problem, partial_path, remove_left, write_atomically
from ..parts import stock_model
from ..skip_config import SkipConfig
from .graphs import require_graph, to_exported_program, to_onnx
from .stock_backbone import HERE, require_exported, stock_names
from .stock_config import config_text, stock_config

HUBCONF = Path(__file__).with_name('hubconf.py')


def export_sub_net(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    skip: str,
    out: str | os.PathLike[str],
    norms: str | os.PathLike[str] | None = None,
    fuse: bool = False,
    onnx: bool = False,
    torch_export: bool = False,
    allow_untrained: bool = False,
) -> list[Path]:
    """Write a plain mmdet config and checkpoint of just one sub-network, and graphs of its backbone and neck.

    Predictions are those of the sub-network in place, to the bit. What mmdet's classes cannot be told to build
    comes with a ``hubconf.py``, which the config finds beside itself. All is made before anything is written.

    Args:
        cfg: a config with an adaptive-depth backbone of this package.
        checkpoint: local weights.
        skip: one code.
        out: a new or empty folder.
        norms: a file of :func:`~adn_mmdet.checkpoints.recalibrate` for this checkpoint and code, to be baked in.
        fuse: fold the backbone's batch norms into its convolutions.
        onnx: also write backbone and neck as ONNX.
        torch_export: also write backbone and neck as a torch.export program (``.pt2``).
        allow_untrained: export a skipped sub-network of weights without skip-aware norms.

    Returns:
        The files.

    Raises:
        UserError: for whatever a user can get wrong; nothing is written.
    """
    folder = _require_free(out)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    detector = MODELS.build(copy.deepcopy(cfg.model))  # mmdet's constructors pop entries
    backbone = find_backbone(detector)
    code = SkipConfig.parse(skip, backbone.letter_groups)
    require_exported(backbone, code, fuse)
    if onnx or torch_export:
        require_graph(detector)
    content = load_from_local(checkpoint, map_location='cpu')
    load_for_testing(detector, checkpoint, [code], allow_untrained, checkpoint=content)
    if norms:
        load_norms(detector, norms, file_sha256(checkpoint), [code])

    name = f'{Path(cfg.filename).stem}_{code}' + '_fused' * fuse
    plain_cfg, plain = plain_detector(cfg, detector, code, fuse)
    plain_cfg.load_from = f'{HERE}/{name}.pth'  # where a training goes on
    title = f'Sub-network {code} of {Path(cfg.filename).name}, for mmdet alone.'
    meta = {
        'dataset_meta': (content.get('meta') or {}).get('dataset_meta') or _dataset_meta(cfg),
        'cfg': config_text(plain_cfg, title, str(folder)),  # for DetInferencer(weights=…) without a config
        'mmengine_version': mmengine.__version__,
    }
    files = {f'{name}.pth': _save({'meta': meta, 'state_dict': plain.state_dict()})}
    if _from_hub(plain_cfg.model):
        files[HUBCONF.name] = HUBCONF.read_bytes()
    if onnx:
        files[f'{name}.onnx'] = to_onnx(plain)
    if torch_export:
        files[f'{name}.pt2'] = to_exported_program(plain)
    files[f'{name}.py'] = config_text(plain_cfg, title).encode()
    return _write(folder, files)


def plain_detector(cfg: Config, detector: nn.Module, code: SkipConfig, fuse: bool = False) -> tuple[Config, nn.Module]:
    """Build mmdet's own detector of one sub-network.

    Args:
        cfg: the config of ``detector``.
        detector: with a backbone that :func:`~adn_mmdet.export.stock_backbone.require_exported` lets pass; it is left
            as it is.
        code: the sub-network.
        fuse: fold the backbone's batch norms into its convolutions.

    Returns:
        The plain config, whose backbone is mmdet's or mmpretrain's, or that of a ``hubconf.py`` beside the config where
        these cannot be told to build it; and the plain detector in eval mode.

    Raises:
        UserError: there is nothing to fuse, or a module of this package has no stock one in its place.
    """
    backbone, stock = find_backbone(detector), Config(cfg.to_dict())
    stock.model = stock_model(stock.model, skipped_parts(backbone, code))
    plain_cfg = stock_config(stock, backbone, code, fuse)
    model = copy.deepcopy(plain_cfg.model)
    model.backbone.pop('fused', None)
    for built in _from_hub(model):
        built['repo_or_dir'] = str(HUBCONF.parent)
    plain = MODELS.build(model)
    plain.load_state_dict(sub_net_weights(detector, code))
    if fuse:
        if not any(isinstance(module, _BatchNorm) for module in plain.backbone.modules()):
            raise UserError(f'--fuse: this backbone has no batch norm ({model.backbone.norm_cfg}), leave --fuse out')
        fuse_conv_bn(plain.backbone)
    return plain_cfg, plain.eval().requires_grad_(False)


def skipped_parts(backbone: AdaptiveDepthBackbone, code: SkipConfig) -> list[SkippablePart]:
    """The parts beyond the backbone that do not run whole at ``code``."""
    return [part for part, flag in zip(backbone.parts, code.flags[backbone.num_stages :], strict=True) if flag]


def _from_hub(config: Any) -> list[dict[str, Any]]:
    """The parts of a model's config that a ``hubconf.py`` builds."""
    inner = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    found = [part for value in inner for part in _from_hub(value)]
    return [config, *found] if isinstance(config, dict) and 'repo_or_dir' in config else found


def sub_net_weights(detector: nn.Module, code: SkipConfig) -> dict[str, Tensor]:
    """The weights that a detector uses at ``code``, by the names that they have in a plain detector."""
    backbone = find_backbone(detector)

    def keys_of(modules: Iterable[nn.Module]) -> tuple[str, ...]:
        inside = set(modules)  # of which some stand in two places
        named = detector.named_modules(remove_duplicate=False)
        return tuple(f'{name}.' for name, module in named if module in inside)

    unused = keys_of([*backbone.skipped_blocks(code), *backbone.idle_norms(code)])
    twins = keys_of(backbone.idle_norms(SkipConfig.super_net(backbone.letter_groups)))
    used = {
        key.replace('_skip.', '.') if key.startswith(twins) else key: value
        for key, value in detector.state_dict().items()
        if not key.startswith(unused)
    }
    for part in skipped_parts(backbone, code):
        named = {key: part.stock_key(key) for key in used}
        used = {name: used[key] for key, name in named.items() if name is not None}
    place = next(iter(keys_of([backbone])))
    renamed = {f'{place}{name}': f'{place}{stock}' for name, stock in stock_names(backbone, code).items()}
    starts = {key: next((start for start in renamed if key.startswith(start)), '') for key in used}
    return {renamed.get(start, '') + key.removeprefix(start): used[key] for key, start in starts.items()}


def _require_free(out: str | os.PathLike[str]) -> Path:
    """The folder to write to, in full; nothing is made yet."""
    folder = Path(out).absolute()
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f'{out} is not empty: give a new or empty folder')
    if problem := name_problem(folder):
        raise UserError(f'cannot write to {out} ({problem}): give another folder')
    require_writable(next(path for path in (folder, *folder.parents) if path.exists()))
    return folder


def _dataset_meta(cfg: Config) -> dict[str, Any]:
    """Class names and colours of the data set that a config tests on."""
    dataset = coco_dataset(cfg.test_dataloader)
    return {**DATASETS.get(dataset.type).METAINFO, **(dataset.get('metainfo') or {})}


def _save(checkpoint: dict[str, Any]) -> bytes:
    with io.BytesIO() as file:
        torch.save(checkpoint, file)
        return file.getvalue()


def _write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write all of the files, or none: to a folder beside, which takes its place when it is whole."""
    remove_left(folder)
    partial = partial_path(folder)
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            write_atomically(partial / name, content)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise UserError(f'cannot write to {folder} ({error.strerror}): give another folder') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [folder / name for name in files]
