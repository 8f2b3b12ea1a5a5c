"""The networks that a checkpoint may hold, under whose names, and what ours are for them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from mmdet.models.backbones.swin import WindowMSA
from torch import Tensor

from ..backbones import AdaptiveDepthMobileNetV2, AdaptiveDepthResNet, AdaptiveDepthSwin, AdaptiveDepthViT
from ..backbones.adaptive_depth import AdaptiveDepthBackbone
from ..errors import UserError

Weights = Mapping[str, Tensor]
Names = Callable[[str], str]

# The arguments of AdaptiveDepthResNet by the authors' names.
RESNETS: dict[str, dict[str, Any]] = {
    'resnet50': dict(depth=50, avg_down=False),
    'resnet50vd': dict(depth=50, avg_down=True),
    'resnet101': dict(depth=101, avg_down=False),
    'resnet101vd': dict(depth=101, avg_down=True),
}
VITS = {16: 'vit_b_16', 32: 'vit_b_32'}  # by the side of a patch in pixels
KNOWN = (*RESNETS, 'mobilenet_v2', *VITS.values(), 'swin_t')
HEADS = ('fc.', 'head.', 'heads.', 'classifier.')
SWIN_DEPTHS, VIT_BLOCKS = (2, 2, 6, 2), 12


def as_it_is(key: str) -> str:
    """The same name."""
    return key


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        name: in messages.
        firsts: a weight that every file has, by whose names; what stands before it is a prefix of all; and the
            renaming of the others.
        find: which of ``KNOWN`` renamed weights are.
        build: our backbone of their widths, on the meta device.
        values: what else is done to renamed weights whose names were not ours.
    """

    name: str
    firsts: dict[str, Names]
    find: Callable[[Weights], str]
    build: Callable[[str, Weights], AdaptiveDepthBackbone]
    values: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def _find_resnet(weights: Weights) -> str:
    blocks = {tuple(key.split('.')[:2]) for key in weights if key.startswith('layer')}
    counts = Counter(stage for stage, _ in sorted(blocks))
    pools = 'layer2.0.downsample.2.weight' in weights  # a pooling at .0 has no weights: .1 is the conv, .2 the norm
    for name, kwargs in RESNETS.items():
        if AdaptiveDepthResNet.arch_settings[kwargs['depth']][1] == (*counts.values(),) and kwargs['avg_down'] == pools:
            return name
    raise UserError(f'holds a ResNet of {[*counts.values()]} blocks a stage: known are {", ".join(RESNETS)}')


def _build_resnet(arch: str, weights: Weights) -> AdaptiveDepthBackbone:
    width = next(iter(weights['layer1.0.conv1.weight'].shape), 0) or 1
    with torch.device('meta'):
        return AdaptiveDepthResNet(base_channels=width, **RESNETS[arch])


def _substitute(rules: dict[str, Any]) -> Names:
    """A renaming by regular expressions, one after the other."""

    def rename(key: str) -> str:
        for pattern, replacement in rules.items():
            key = re.sub(pattern, replacement, key)
        return key

    return rename


FFN = {r'\bmlp\.(0|linear_1)\.': 'ffn.layers.0.0.', r'\bmlp\.(3|linear_2)\.': 'ffn.layers.1.'}


def _swin_names(stem: str, first_stage: int) -> Names:
    """Names of torchvision's kind: stages and what is between them take turns in ``features``."""

    def part(found: re.Match[str]) -> str:
        stage = (int(found[1]) - first_stage) // 2
        return f'stages.{stage}.blocks.{found[2]}.' if found[2].isdigit() else f'stages.{stage}.downsample.{found[2]}.'

    return _substitute(
        {
            rf'^{stem}\.0\.': 'patch_embed.projection.',
            rf'^{stem}\.2\.': 'patch_embed.norm.',
            r'^features\.(\d)\.(\d+|reduction|norm|norm_skip)\.': part,
            r'\battn\.': 'attn.w_msa.',
            r'^norm\.': 'norm3.',
            **FFN,
        }
    )


def _swin_values(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a merging's inputs in the order of ``nn.Unfold``, and the index of the tables in the form that we have."""

    def reordered(value: Tensor) -> Tensor:
        quarters = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
        return quarters.transpose(-1, -2).flatten(-2)

    result = {}
    for key, value in weights.items():
        if key.endswith('relative_position_bias_table'):
            side = (math.isqrt(len(value)) + 1) // 2
            index = WindowMSA(1, 1, (side, side)).relative_position_index
            result[key.replace('bias_table', 'index')] = index
        is_input = '.downsample.' in key and value.dim() and value.shape[-1] % 4 == 0
        if not key.endswith('relative_position_index'):
            result[key] = reordered(value) if is_input else value
    return result


def _find_swin(weights: Weights) -> str:
    blocks = {tuple(key.split('.')[:4]) for key in weights if key.startswith('stages.') and '.blocks.' in key}
    counts = Counter(stage for _, stage, *_ in sorted(blocks))
    if (*counts.values(),) != SWIN_DEPTHS:
        raise UserError(f'holds a Swin of {[*counts.values()]} blocks a stage: known is swin_t of {[*SWIN_DEPTHS]}')
    return 'swin_t'


def _build_swin(arch: str, weights: Weights) -> AdaptiveDepthBackbone:
    tables = [weights[f'stages.{stage}.blocks.0.attn.w_msa.relative_position_bias_table'] for stage in range(4)]
    width = len(weights['patch_embed.norm.weight'])
    heads, side = [table.shape[1] for table in tables], (math.isqrt(len(tables[0])) + 1) // 2
    outputs = [index for index in range(4) if f'norm{index}.weight' in weights]
    return AdaptiveDepthSwin(embed_dims=width, num_heads=heads, window_size=side, out_indices=outputs).to('meta')


vit_names = _substitute(
    {
        r'^class_token$': 'cls_token',
        r'^conv_proj\.': 'patch_embed.projection.',
        r'^encoder\.pos_embedding$': 'pos_embed',
        r'^encoder\.layers\.encoder_layer_(\d+)\.': r'layers.\1.',
        r'^encoder\.ln\.': 'ln1.',
        r'\.ln_([12])(_skip)?\.': r'.ln\1\2.',
        r'\.self_attention\.in_proj_': '.attn.qkv.',
        r'\.self_attention\.out_proj\.': '.attn.proj.',
        **FFN,
    }
)


def _find_vit(weights: Weights) -> str:
    blocks = {key.split('.')[1] for key in weights if key.startswith('layers.')}
    patch = weights['patch_embed.projection.weight'].shape[-1]
    if len(blocks) != VIT_BLOCKS or patch not in VITS:
        raise UserError(
            f'holds a ViT of {len(blocks)} blocks and patches of {patch} pixels: known are {", ".join(VITS.values())}'
        )
    return VITS[patch]


def _build_vit(arch: str, weights: Weights) -> AdaptiveDepthBackbone:
    width, patch = (weights['patch_embed.projection.weight'].shape[axis] for axis in (0, -1))
    hidden = len(weights['layers.0.ffn.layers.0.0.weight'])
    kind = dict(embed_dims=width, num_layers=VIT_BLOCKS, num_heads=1, feedforward_channels=hidden)
    side = math.isqrt(weights['pos_embed'].shape[1] - 1) * patch
    with torch.device('meta'):
        return AdaptiveDepthViT(kind, patch_size=patch, img_size=side)


LAYERS = [number for *_, number, _ in AdaptiveDepthMobileNetV2.arch_settings]  # blocks of layer1 to layer7
STARTS = [1, *(1 + total for total in accumulate(LAYERS))]  # at which of `features` they begin; the last is conv2


def _mobilenet_part(layer: int, number: int) -> str:
    """mmdet's name of the convolution at a place in a block; layer1 does not expand."""
    return ('expand_conv', 'depthwise_conv', 'linear_conv')[number + (layer == 1)]


def _mobilenet_authors(key: str) -> str:
    def block(found: re.Match[str]) -> str:
        layer = int(found[1])
        return f'layer{layer}.{found[3] or 0}.{_mobilenet_part(layer, int(found[4]))}.'

    rules: dict[str, Any] = {
        r'^features\.(\d)(\.(\d))?\.conv\.(\d)\.': block,
        r'^features\.0\.': 'conv1.',
        r'^features\.8\.': 'conv2.',
        r'\.conv_layer\.': '.conv.',
        r'\.norm(_skip)?\.': r'.bn\1.',
    }
    return _substitute(rules)(key)


def _mobilenet_torchvision(key: str) -> str:
    def block(found: re.Match[str]) -> str:
        place, number, kind = int(found[1]), int(found[2]), found[3]
        layer = max(index for index, start in enumerate(STARTS[:-1], 1) if start <= place)
        linear = 1 if layer == 1 else 2  # whose norm follows it at the next place
        if kind is None:
            kind, number = ('0', number) if number == linear else ('1', linear)
        return f'layer{layer}.{place - STARTS[layer - 1]}.{_mobilenet_part(layer, number)}.{("conv", "bn")[int(kind)]}.'

    rules: dict[str, Any] = {
        r'^features\.(\d+)\.conv\.(\d)\.(?:([01])\.)?': block,
        r'^features\.(0|18)\.([01])\.': lambda f: f'conv{1 if f[1] == "0" else 2}.{("conv", "bn")[int(f[2])]}.',
    }
    return _substitute(rules)(key)


def _mobilenet_mmpretrain(key: str) -> str:
    def block(found: re.Match[str]) -> str:
        return f'layer{found[1]}.{found[2]}.{_mobilenet_part(int(found[1]), int(found[3]))}.'

    return _substitute({r'^layer(\d)\.(\d)\.conv\.(\d)\.': block})(key)


def _build_mobilenet(arch: str, weights: Weights) -> AdaptiveDepthBackbone:
    factor = len(weights['conv1.conv.weight']) / 32
    with torch.device('meta'):
        return AdaptiveDepthMobileNetV2(widen_factor=factor, out_indices=(7,))


FAMILIES = (
    Family('ResNet', {'layer1.0.conv1.weight': as_it_is}, _find_resnet, _build_resnet),
    Family(
        'Swin',
        {
            'features.0.0.attn.qkv.weight': _swin_names('pre', 0),  # the authors'
            'features.1.0.attn.qkv.weight': _swin_names(r'features\.0', 1),  # torchvision's
            'stages.0.blocks.0.attn.w_msa.qkv.weight': as_it_is,
        },
        _find_swin,
        _build_swin,
        _swin_values,
    ),
    Family(
        'ViT',
        {'encoder.layers.encoder_layer_0.ln_1.weight': vit_names, 'layers.0.ln1.weight': as_it_is},
        _find_vit,
        _build_vit,
    ),
    Family(
        'MobileNetV2',
        {
            'features.1.conv.0.conv_layer.weight': _mobilenet_authors,
            'features.1.conv.0.0.weight': _mobilenet_torchvision,
            'layer1.0.conv.0.conv.weight': _mobilenet_mmpretrain,
            'layer1.0.depthwise_conv.conv.weight': as_it_is,
        },
        lambda weights: 'mobilenet_v2',
        _build_mobilenet,
    ),
)
