"""Exports one sub-network of an any-depth detector, for users who have mmdet but not this package."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
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

from ..backbones.adaptive_depth import find_backbone
from ..backbones.resnet import AdaptiveDepthResNet
from ..errors import UserError
from ..evaluation.recalibration import load_norms
from ..files import file_sha256, write_atomically
from ..preflight import coco_dataset, require_writable
from ..skip_config import SkipConfig
from .graphs import to_exported_program, to_onnx
from .loading import load_for_testing
from .safe_loading import load_from_local
from .stock_config import HERE, stock_config

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

    Predictions are those of the sub-network in place, to the bit. A backbone that mmdet's ResNet cannot be told to
    build comes with a ``hubconf.py``, which the config finds beside itself. All is made before anything is written.

    Args:
        cfg: a config with an AdaptiveDepthResNet.
        checkpoint: local weights.
        skip: one code.
        out: a new or empty folder.
        norms: a file of :func:`~adn_mmdet.evaluation.recalibrate` for this checkpoint and code, to be baked in.
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
    detector = MODELS.build(cfg.model)
    backbone = find_backbone(detector)
    if type(backbone) is not AdaptiveDepthResNet:
        raise UserError(f'{type(backbone).__name__} cannot be exported: only AdaptiveDepthResNet can')
    code = SkipConfig.parse(skip, backbone.num_stages)
    if (onnx or torch_export) and not getattr(detector, 'with_neck', False):
        raise UserError(f'{type(detector).__name__} has no neck: leave --onnx and --torch-export out')
    content = load_from_local(checkpoint, map_location='cpu')
    load_for_testing(detector, checkpoint, [code], allow_untrained, checkpoint=content)
    if norms:
        load_norms(detector, norms, file_sha256(checkpoint), [code])

    blocks = [stage.num_mandatory if flag else len(stage) for stage, flag in zip(backbone.stages, code)]
    name = f'{Path(cfg.filename).stem}_{code}' + '_fused' * fuse
    plain_cfg = stock_config(cfg, blocks if any(code) else None, fuse, weights=f'{name}.pth')
    plain = _build(plain_cfg, sub_net_weights(detector, code), fuse)
    text = f'# Sub-network {code} of {Path(cfg.filename).name}, for mmdet alone.\n{plain_cfg.pretty_text}'
    meta = {
        'dataset_meta': content.get('meta', {}).get('dataset_meta') or _dataset_meta(cfg),
        'cfg': text.replace(HERE, str(folder)),  # for DetInferencer(weights=…) without a config
        'mmengine_version': mmengine.__version__,
    }
    files = {f'{name}.pth': _save({'meta': meta, 'state_dict': plain.state_dict()})}
    if HERE in str(plain_cfg.model.backbone):
        files[HUBCONF.name] = HUBCONF.read_bytes()
    if onnx:
        files[f'{name}.onnx'] = to_onnx(plain)
    if torch_export:
        files[f'{name}.pt2'] = to_exported_program(plain)
    files[f'{name}.py'] = text.encode()
    return _write(folder, files)
