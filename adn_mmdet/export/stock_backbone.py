"""The stock network that a depth of an adaptive-depth backbone is: its config, and where its blocks stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models import CSPDarknet, CSPNeXt

from .. import backbones as ours
from ..backbones import AdaptiveDepthBackbone
from ..backbones.vit import AdaptiveDepthViT
from ..errors import UserError
from ..skip_config import SkipConfig

HERE = '<the folder of the config>'  # stands for it in a value
CSP: dict[type, Any] = {ours.AdaptiveDepthCSPNeXt: CSPNeXt, ours.AdaptiveDepthCSPDarknet: CSPDarknet}
# mmdet's constructors cannot be told the blocks a stage of these: hubconf.py builds them.
HUB: dict[type, str] = {
    ours.AdaptiveDepthResNet: 'ResNet',
    ours.AdaptiveDepthResNeXt: 'ResNeXt',
    ours.AdaptiveDepthRegNet: 'RegNet',
    ours.AdaptiveDepthMobileNetV2: 'MobileNetV2',
}
EXPORTED = (*HUB, *CSP, ours.AdaptiveDepthSwin, AdaptiveDepthViT)


def from_hub(entry: str, **kwargs: Any) -> dict[str, Any]:
    """The config of what a function of the ``hubconf.py`` beside the config builds."""
    return dict(type='torch.hub.load', repo_or_dir=HERE, source='local', model=entry, **kwargs)


def require_exported(backbone: AdaptiveDepthBackbone, code: SkipConfig, fuse: bool) -> None:
    """Refuse what no stock network is.

    Raises:
        UserError: a backbone of another kind, one that has nothing to fuse, or a ViT with windows, or with outputs that
            are one at ``code``.
    """
    kind = type(backbone)
    if kind not in EXPORTED:
        names = ', '.join(each.__name__ for each in EXPORTED)
        raise UserError(f'{kind.__name__} cannot be exported: only {names} can')
    if fuse and kind not in HUB:
        names = ', '.join(each.__name__ for each in HUB)
        raise UserError(f'--fuse is for {names}, not {kind.__name__}: leave --fuse out')
    if not isinstance(backbone, AdaptiveDepthViT):
        return
    if any(layer.window_size for layer in backbone.layers):
        raise UserError(
            "AdaptiveDepthViT with window_size cannot be exported, as mmpretrain's VisionTransformer has no windows: "
            'run it with adn_mmdet, or train it with window_size=0'
        )
    outputs, last = _outputs(backbone, code), backbone.num_layers - 1
    if len({*outputs}) < len(outputs) or (
        outputs[-1] == _kept(backbone, code)[-1] and last not in backbone.out_indices
    ):
        raise UserError(
            f'AdaptiveDepthViT with out_indices={list(backbone.out_indices)} cannot be exported at {code}: its outputs '
            'there are not those of different blocks of a VisionTransformer; export a code that skips less'
        )


def stock_backbone(
    config: dict[str, Any], backbone: AdaptiveDepthBackbone, code: SkipConfig, fused: bool
) -> dict[str, Any]:
    """The config of the stock network that a depth is.

    Args:
        config: that of ``backbone``; it is left as it is.
        backbone: one that :func:`require_exported` lets pass.
        code: the depth.
        fused: whether its batch norms are part of its convolutions.

    Returns:
        A config for mmdet's or mmpretrain's own class, or for the ``hubconf.py`` beside the config where no constructor
        can be told to build it.
    """
    own = ('type', 'skip', 'skip_aware_norm')
    stock = {key: value for key, value in config.items() if key not in own}
    if isinstance(backbone, AdaptiveDepthViT):
        return _vit(stock, backbone, code)
    blocks = stage_blocks(backbone, code)
    if (csp := CSP.get(type(backbone))) is not None:
        arch = stock.get('arch_ovewrite') or csp.arch_settings[stock.get('arch', 'P5')]
        stages = [[*stage[:2], number, *stage[3:]] for stage, number in zip(arch, blocks, strict=True)]
        return dict(type=f'mmdet.{csp.__name__}') | stock | dict(deepen_factor=1.0, arch_ovewrite=stages)
    if (kind := HUB.get(type(backbone))) is None:
        return dict(type='mmdet.SwinTransformer') | stock | dict(depths=blocks)
    if blocks == [len(stage.blocks_in_order) for stage in backbone.stages] and not fused:
        return dict(type=f'mmdet.{kind}', **stock)
    more = dict(fused=True) if fused else {}
    return from_hub('backbone', kind=kind, stage_blocks=blocks, **more, **stock)


def stage_blocks(backbone: AdaptiveDepthBackbone, code: SkipConfig) -> list[int]:
    """How many blocks of each stage run at ``code``; not of ViT, which has no stages."""
    return [stage.num_mandatory if flag else len(stage.blocks_in_order) for stage, flag in zip(backbone.stages, code)]


def stock_names(backbone: AdaptiveDepthBackbone, code: SkipConfig) -> dict[str, str]:
    """What the names of weights begin with in ``backbone``, and in the stock network, where they differ."""
    kept = _kept(backbone, code) if isinstance(backbone, AdaptiveDepthViT) else []
    return {f'layers.{index}.': f'layers.{number}.' for number, index in enumerate(kept)}


def _vit(stock: dict[str, Any], backbone: AdaptiveDepthViT, code: SkipConfig) -> dict[str, Any]:
    kept = _kept(backbone, code)
    for key in ('window_size', 'global_blocks', 'with_cp'):
        stock.pop(key, None)
    stock.update(
        arch=dict(backbone.arch_settings, num_layers=len(kept)),
        out_indices=[kept.index(index) for index in _outputs(backbone, code)],
    )
    if stock.get('frozen_stages', -1) > 0:
        stock['frozen_stages'] = sum(index < stock['frozen_stages'] for index in kept)
    if isinstance(layers := stock.get('layer_cfgs'), Sequence):
        stock['layer_cfgs'] = [layers[index] for index in kept]
    return dict(type='mmpretrain.VisionTransformer', **stock)


def _kept(backbone: AdaptiveDepthViT, code: SkipConfig) -> list[int]:
    """The indices of the blocks that run at ``code``."""
    skipped = {*backbone.skipped_blocks(code)}
    return [index for index, layer in enumerate(backbone.layers) if layer not in skipped]


def _outputs(backbone: AdaptiveDepthViT, code: SkipConfig) -> list[int]:
    """For each of ``out_indices``, the last block up to it that runs at ``code``."""
    kept = _kept(backbone, code)
    return [max(index for index in kept if index <= output) for output in backbone.out_indices]
