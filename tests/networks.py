"""Small versions of the paper's other networks, their stock classes, and stock networks of chosen blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mmdet.models import CSPDarknet, CSPNeXt, MobileNetV2, RegNet, ResNet, ResNeXt, SwinTransformer
from mmpretrain.models import SwinTransformer as ImageNetSwinTransformer
from mmpretrain.models import VisionTransformer
from tiny import randomize_norms
from torch import Tensor, nn

from adn_mmdet import SkipConfig
from adn_mmdet.backbones import (
    AdaptiveDepthCSPDarknet,
    AdaptiveDepthCSPNeXt,
    AdaptiveDepthMobileNetV2,
    AdaptiveDepthRegNet,
    AdaptiveDepthResNet,
    AdaptiveDepthResNeXt,
    AdaptiveDepthSwin,
    AdaptiveDepthViT,
    ShallowMobileNetV2,
)
from adn_mmdet.backbones.swin import ImageNetSwin

HEADS = (1, 2, 4, 8)
SWIN = dict(embed_dims=8, num_heads=HEADS, window_size=4, drop_path_rate=0.3)
IMAGENET_SWIN = dict(img_size=64, window_size=2, drop_path_rate=0.3, out_indices=(0, 1, 2, 3))
VIT_ARCH = dict(embed_dims=16, num_heads=2, feedforward_channels=32)
VIT = dict(img_size=64, patch_size=16, drop_path_rate=0.3, out_type='featmap')
MOBILENET = dict(widen_factor=0.25, out_indices=(1, 2, 4, 7))
REGNET = dict(w0=16, wa=12.0, wm=2.0, group_w=8, depth=9, bot_mul=1.0)
RESNET = dict(base_channels=8, norm_eval=False)


@dataclass(frozen=True)
class Network:
    """``letter(key)`` is the index of the letter that governs a weight, or None; ``shallow(blocks)`` is a stock net."""

    adaptive: Callable[..., nn.Module]
    stock: Callable[..., nn.Module]
    blocks: Sequence[int]
    mandatory: Sequence[int]
    letter: Callable[[str], int | None]
    shallow: Callable[[Sequence[int]], nn.Module]
    num_twins: int

    @property
    def codes(self) -> list[str]:
        return [str(code) for code in SkipConfig.all(len(self.blocks))]


def _swin_letter(key: str) -> int | None:
    found = re.match(r'stages\.(\d)\.(blocks|downsample)', key)
    return int(found[1]) + (found[2] == 'downsample') if found else None


def _mobilenet_letter(key: str) -> int | None:
    return {'conv1': 0, 'layer1': 0, 'layer7': 4, 'conv2': 4}.get(part := key.split('.')[0], int(part[-1]) - 2)


def _resnet_letter(key: str) -> int | None:
    return int(key[5]) - 1 if key.startswith('layer') else None


def _imagenet_arch(depths: Sequence[int] = (2, 2, 6, 2)) -> dict[str, object]:
    return dict(embed_dims=8, depths=depths, num_heads=HEADS)


def _vit(cls: type[nn.Module], blocks: Sequence[int] = (3, 3, 3, 3), **kwargs: object) -> nn.Module:
    ends = torch.tensor(blocks).cumsum(0) - 1
    return cls(VIT_ARCH | dict(num_layers=sum(blocks)), out_indices=ends.tolist(), **(VIT | kwargs))


def _cut(stock: nn.Module, blocks: Sequence[int]) -> nn.Module:
    for name, number in zip(stock.res_layers, blocks):
        layer = getattr(stock, name)
        while len(layer) > number:
            del layer[len(layer) - 1]
    return stock


def _kin(adaptive: type, stock: type, blocks: Sequence[int], mandatory: Sequence[int], norms: int, **kw):
    return Network(
        lambda **more: adaptive(**(kw | more)),
        lambda **more: stock(**(kw | more)),
        blocks,
        mandatory,
        _resnet_letter,
        lambda chosen: _cut(stock(**kw), chosen),
        norms * sum(mandatory),
    )


def _csp(adaptive: type, stock: type, blocks: Sequence[int], mandatory: Sequence[int], norms: int):
    def arch(chosen: Sequence[int]) -> dict[str, object]:
        widths = (8, 8, 16, 16, 32)
        stages = [[*widths[i : i + 2], number, i < 3, i == 3] for i, number in enumerate(chosen)]
        return dict(arch_ovewrite=stages, out_indices=(1, 2, 3, 4))

    return Network(
        lambda **kwargs: adaptive(**(arch(blocks) | kwargs)),
        lambda **kwargs: stock(**(arch(blocks) | kwargs)),
        blocks,
        mandatory,
        lambda key: int(key[5]) - 1 if key.startswith('stage') else None,
        lambda chosen: stock(**arch(chosen)),
        len(blocks) * 3 + norms * sum(mandatory),
    )


NETWORKS = {
    'swin': Network(
        lambda **kwargs: AdaptiveDepthSwin(**(SWIN | kwargs)),
        lambda **kwargs: SwinTransformer(**(SWIN | kwargs)),
        (2, 2, 6, 2),
        (1, 1, 3, 1),
        _swin_letter,
        lambda blocks: SwinTransformer(depths=blocks, **SWIN),
        15,
    ),
    'imagenet swin': Network(
        lambda **kwargs: ImageNetSwin(_imagenet_arch(), **(IMAGENET_SWIN | kwargs)),
        lambda **kwargs: ImageNetSwinTransformer(_imagenet_arch(), **(IMAGENET_SWIN | kwargs)),
        (2, 2, 6, 2),
        (1, 1, 3, 1),
        _swin_letter,
        lambda blocks: ImageNetSwinTransformer(_imagenet_arch(blocks), **IMAGENET_SWIN),
        15,
    ),
    'mobilenet': Network(
        lambda **kwargs: AdaptiveDepthMobileNetV2(**(MOBILENET | kwargs)),
        lambda **kwargs: MobileNetV2(**(MOBILENET | kwargs)),
        (2, 3, 4, 3, 3),
        (1, 2, 2, 2, 2),
        _mobilenet_letter,
        lambda blocks: ShallowMobileNetV2(stage_blocks=blocks, **MOBILENET),
        34,
    ),
    'vit': Network(
        lambda **kwargs: _vit(AdaptiveDepthViT, **kwargs),
        lambda **kwargs: _vit(VisionTransformer, **kwargs),
        (3, 3, 3, 3),
        (2, 2, 2, 2),
        lambda key: int(key.split('.')[1]) // 3 if key.startswith('layers.') else None,
        lambda blocks: _vit(VisionTransformer, blocks),
        16,
    ),
    'resnet 18': _kin(AdaptiveDepthResNet, ResNet, (2, 2, 2, 2), (1, 1, 1, 1), 2, depth=18, **RESNET),
    'resnet 34': _kin(AdaptiveDepthResNet, ResNet, (3, 4, 6, 3), (2, 2, 3, 2), 2, depth=34, **RESNET),
    'resnext': _kin(
        AdaptiveDepthResNeXt, ResNeXt, (3, 4, 6, 3), (2, 2, 3, 2), 3, depth=50, groups=4, base_width=4, **RESNET
    ),
    'regnet': _kin(AdaptiveDepthRegNet, RegNet, (1, 2, 4, 2), (1, 1, 2, 1), 3, arch=REGNET, norm_eval=False),
    'cspnext': _csp(AdaptiveDepthCSPNeXt, CSPNeXt, (1, 2, 4, 3), (1, 1, 2, 2), 3),
    'cspdarknet': _csp(AdaptiveDepthCSPDarknet, CSPDarknet, (1, 3, 3, 1), (1, 2, 2, 1), 2),
}  # fmt: skip
FOUR = ('swin', 'imagenet swin', 'mobilenet', 'vit')


def same_weights(build: Callable[..., nn.Module], **kwargs: object) -> nn.Module:
    """A network with the same weights every time, of which no two norms are alike."""
    torch.manual_seed(0)
    net = build(**kwargs)
    net.init_weights()
    randomize_norms(net)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in net.named_parameters():
        if name.endswith(('bias_table', 'pos_embed', 'cls_token')):  # zeros, which would hide what they are of
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def images(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def hand_assembled(network: Network, adaptive: nn.Module, code: str) -> nn.Module:
    """A stock network of just the blocks that a code runs, with the norms that it uses, in eval mode."""
    flags = [letter == 'T' for letter in code]
    chosen = [few if flag else all_ for few, all_, flag in zip(network.mandatory, network.blocks, flags)]
    stock, weights = network.shallow(chosen), adaptive.state_dict()
    own = {}
    for key in stock.state_dict():
        source = _renumbered(key, chosen) if key.startswith('layers.') else key
        letter = network.letter(source)
        norm, _, kind = source.rpartition('.')
        twin = f'{norm}_skip.{kind}'
        own[key] = weights[twin if letter is not None and flags[letter] and twin in weights else source]
    stock.load_state_dict(own)
    stock.eval()  # which returns None in some of them
    return stock


def _renumbered(key: str, chosen: Sequence[int]) -> str:
    """The name in ViT of a weight of a ViT of fewer blocks."""
    _, number, rest = key.split('.', 2)
    all_blocks = [3 * quarter + index for quarter, count in enumerate(chosen) for index in range(count)]
    return f'layers.{all_blocks[int(number)]}.{rest}'
