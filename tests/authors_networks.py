"""What the authors' files of MobileNetV2, ViT and Swin hold: our weights under their names, written out by hand."""

from __future__ import annotations

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def swin(weights: Weights) -> Weights:
    found = {}
    for key, value in weights.items():
        key = key.replace('attn.w_msa.', 'attn.').replace('ffn.layers.0.0', 'mlp.0').replace('ffn.layers.1', 'mlp.3')
        key = key.replace('patch_embed.projection', 'pre.0').replace('patch_embed.norm', 'pre.2')
        key = key.replace('norm3.', 'norm.')
        if key.startswith('stages.'):
            _, stage, part, rest = key.split('.', 3)
            if part == 'downsample':
                # Unfold has each channel's four neighbours side by side; the authors' quarters of all channels.
                if value.dim():
                    four = value.reshape(*value.shape[:-1], -1, 4)
                    value = torch.cat([four[..., 0], four[..., 2], four[..., 1], four[..., 3]], -1)
                key = f'features.{2 * int(stage) + 1}.{rest}'
            else:
                key = f'features.{2 * int(stage)}.{rest}'
        found[key] = value.flatten() if key.endswith('relative_position_index') else value
    return found | {'head.weight': torch.zeros(10, 8), 'head.bias': torch.zeros(10)}


def vit(weights: Weights) -> Weights:
    found = {}
    for key, value in weights.items():
        names = {'cls_token': 'class_token', 'pos_embed': 'encoder.pos_embedding', 'ln1.': 'encoder.ln.'}
        if key.startswith('layers.'):
            key = 'encoder.layers.encoder_layer_' + key.removeprefix('layers.')
            for ours, theirs in (
                ('ln1', 'ln_1'),
                ('ln2', 'ln_2'),
                ('attn.qkv.', 'self_attention.in_proj_'),
                ('attn.proj', 'self_attention.out_proj'),
                ('ffn.layers.0.0', 'mlp.0'),
                ('ffn.layers.1', 'mlp.3'),
            ):
                key = key.replace(ours, theirs)
        else:
            start = next((ours for ours in names if key.startswith(ours)), None)
            key = (
                names[start] + key.removeprefix(start) if start else key.replace('patch_embed.projection', 'conv_proj')
            )
        found[key] = value
    return found | {'heads.head.weight': torch.zeros(10, 16), 'heads.head.bias': torch.zeros(10)}


def mobilenet(weights: Weights) -> Weights:
    found = {}
    for key, value in weights.items():
        part, rest = key.split('.', 1)
        end = rest.rpartition('.')[0].rpartition('.')[2]
        tail = {'conv': 'conv_layer', 'bn': 'norm', 'bn_skip': 'norm_skip'}[end] + '.' + rest.rpartition('.')[2]
        if part in ('conv1', 'conv2'):
            found[f'features.{0 if part == "conv1" else 8}.{tail}'] = value
            continue
        number, conv = rest.split('.')[:2]
        layer = int(part[-1])
        place = ('expand_conv', 'depthwise_conv', 'linear_conv').index(conv) - (layer == 1)
        block = '' if layer in (1, 7) else f'{number}.'
        found[f'features.{layer}.{block}conv.{place}.{tail}'] = value
    return found | {'classifier.1.weight': torch.zeros(10, 1280), 'classifier.1.bias': torch.zeros(10)}
