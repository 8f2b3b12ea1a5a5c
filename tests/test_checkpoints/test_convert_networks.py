"""Conversion of files of the authors' other networks, of torchvision and of OpenMMLab."""

import warnings

import authors_networks
import pytest
import torch
from mmpretrain.models import MobileNetV2 as MMPretrainMobileNetV2
from networks import NETWORKS, images, same_weights
from torch.nn import functional as F
from torchvision import models
from torchvision.models import swin_transformer, vision_transformer

from adn_mmdet import AdaptiveDepthMobileNetV2, AdaptiveDepthSwin, AdaptiveDepthViT, UserError
from adn_mmdet.backbones.swin import ImageNetSwin
from adn_mmdet.checkpoints import convert_checkpoint, convert_weights

AUTHORS = {'swin': 'swin_t', 'mobilenet': 'mobilenet_v2', 'vit': 'vit_b_16'}


def of_the_authors(name):
    backbone = same_weights(NETWORKS[name].adaptive, **(dict(out_indices=(3,)) if name == 'swin' else {}))
    return backbone, getattr(authors_networks, name)(backbone.state_dict())


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('name', AUTHORS)
def test_files_of_the_authors(name, prefix):
    backbone, weights = of_the_authors(name)
    assert not backbone.state_dict().keys() & {key for key in weights if key != 'cls_token'}  # no name is ours
    conversion = convert_weights({prefix + key: value for key, value in weights.items()})
    assert (conversion.arch, conversion.prefix, conversion.num_untrained_norms) == (AUTHORS[name], prefix, 0)
    assert len(conversion.dropped) == 2  # the classifier
    assert_same(conversion.weights, backbone.state_dict())
    assert_same(convert_weights(conversion.weights).weights, backbone.state_dict())  # ours stay as they are


@pytest.mark.parametrize('name', AUTHORS)
def test_a_backbone_starts_from_the_file(name, tmp_path):
    source, out = tmp_path / 'source.pth', tmp_path / 'out.pth'
    backbone, weights = of_the_authors(name)
    average = {'n_averaged': torch.tensor(1), **{f'module.{key}': value for key, value in weights.items()}}
    torch.save(dict(model={key: value * 0 for key, value in weights.items()}, model_ema=average, epoch=3), source)
    conversion = convert_checkpoint(source, out, prefer_ema=True, arch=AUTHORS[name])
    assert conversion.averaged
    fresh = NETWORKS[name].adaptive(init_cfg=dict(type='Pretrained', checkpoint=str(out)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fresh.init_weights()
    own = fresh.state_dict()
    assert all(torch.equal(own[key], value) for key, value in backbone.state_dict().items())


def swin_features(net, x):
    return net.norm(net.features(x)).permute(0, 3, 1, 2)


def vit_features(net, x):
    x = torch.cat([net.class_token.expand(len(x), -1, -1), net._process_input(x)], 1)
    return net.encoder(x)[:, 0]


TORCHVISION = {
    'swin_t': (
        lambda: swin_transformer.SwinTransformer([4, 4], 8, [2, 2, 6, 2], [1, 2, 4, 8], [2, 2], num_classes=5),
        lambda: ImageNetSwin(dict(embed_dims=8, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8]), window_size=2),
        swin_features,
    ),
    'vit_b_16': (
        lambda: vision_transformer.VisionTransformer(64, 16, 12, 2, 16, 32, num_classes=5),
        lambda: AdaptiveDepthViT(
            dict(embed_dims=16, num_layers=12, num_heads=2, feedforward_channels=32), img_size=64, out_indices=[11]
        ),
        vit_features,
    ),
    'mobilenet_v2': (
        lambda: models.mobilenet_v2(width_mult=0.25),
        lambda: AdaptiveDepthMobileNetV2(widen_factor=0.25, out_indices=(7,)),
        lambda net, x: net.features(x),
    ),
}


@pytest.mark.parametrize('arch', TORCHVISION)
def test_torchvisions_networks_give_the_same_features(arch):
    """To rounding: torchvision computes attention and merging in another order."""
    build, adaptive, features = TORCHVISION[arch]
    theirs = same_weights_of(build)
    conversion = convert_weights(theirs.state_dict())
    assert conversion.arch == arch and conversion.num_untrained_norms
    ours = adaptive().eval()
    with pytest.warns(UserWarning, match='skip-aware norms'):
        ours.load_state_dict(conversion.weights, strict=arch != 'swin_t')
    with torch.no_grad():
        expected, found = features(theirs, images()), ours(images())[-1]
    assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
    assert F.mse_loss(expected, torch.zeros_like(expected)) > 1e-3


def same_weights_of(build):
    torch.manual_seed(0)
    net = build().eval()
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def test_mmpretrains_mobilenet():
    theirs = MMPretrainMobileNetV2(widen_factor=0.25)
    theirs.eval()
    conversion = convert_weights({f'backbone.{key}': value for key, value in theirs.state_dict().items()})
    assert (conversion.arch, conversion.prefix) == ('mobilenet_v2', 'backbone.')
    ours = AdaptiveDepthMobileNetV2(widen_factor=0.25, out_indices=(7,)).eval()
    with pytest.warns(UserWarning, match='34 skip-aware norms'):
        ours.load_state_dict(conversion.weights)
    assert torch.equal(ours(images())[0], theirs(images())[0])


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('swin', lambda w: w.pop('pre.2.weight'), "looks like a Swin, but lacks 'patch_embed.norm.weight'"),
        ('swin', lambda w: w.pop('features.2.0.norm1.bias'), 'looks like swin_t, but lacks stages.1.blocks.0.norm1'),
        ('vit', lambda w: [w.pop(k) for k in list(w) if 'layer_11.' in k], 'a ViT of 11 blocks and patches of 16 '),
        ('vit', lambda w: w.update({'conv_proj.weight': torch.zeros(16, 3, 14, 14)}), 'patches of 14 pixels: known'),
        (
            'mobilenet',
            lambda w: w.update({'features.3.1.conv.0.norm.bias': torch.zeros(3)}),
            r'layer3.1.expand_conv.bn.bias has shape \(3,\), but mobilenet_v2 has',
        ),
    ],
)
def test_what_is_refused(name, change, message, tmp_path):
    _, weights = of_the_authors(name)
    change(weights)
    torch.save(weights, tmp_path / 'source.pth')
    with pytest.raises(UserError, match=message) as error:
        convert_checkpoint(tmp_path / 'source.pth', tmp_path / 'out.pth')
    assert '\n' not in str(error.value) and not (tmp_path / 'out.pth').exists()


def test_another_architecture_than_was_asked_for():
    with pytest.raises(UserError, match='holds vit_b_16, not swin_t'):
        convert_weights(of_the_authors('vit')[1], arch='swin_t')


@pytest.mark.parametrize('target', ['swin', 'mobilenet', 'vit', 'resnet 18'])
def test_weights_of_another_network_are_refused_by_a_backbone(target):
    for source in ('swin', 'mobilenet', 'vit', 'resnet 18'):
        if source != target:
            weights = NETWORKS[source].stock().state_dict()
            for load in (weights, {f'backbone.{key}': value for key, value in weights.items()}):
                with pytest.raises(UserError, match='fit no layer of|are of another network than') as error:
                    NETWORKS[target].adaptive().load_state_dict(load, strict=False)
                assert '\n' not in str(error.value)


def test_weights_of_another_size_are_refused_by_a_backbone():
    other = AdaptiveDepthSwin(embed_dims=16, num_heads=(1, 2, 4, 8), window_size=4)
    with pytest.raises(UserError, match=r'another AdaptiveDepthSwin: patch_embed.*has shape \(16, 3, 4, 4\), but \(8,'):
        NETWORKS['swin'].adaptive().load_state_dict(other.state_dict())


def test_position_embeddings_are_resized_or_refused():
    large, small = NETWORKS['vit'].adaptive(img_size=96), NETWORKS['vit'].adaptive()
    small.load_state_dict(large.state_dict())  # 6×6 to 4×4 patches
    assert torch.equal(small.layers[0].ln1_skip.weight, large.layers[0].ln1_skip.weight)
    for shape in ((1, 12, 16), (1, 17, 8), (17, 16)):
        with pytest.raises(UserError, match='pos_embed has shape .* cannot be resized to') as error:
            small.load_state_dict(large.state_dict() | {'pos_embed': torch.zeros(shape)})
        assert '\n' not in str(error.value)
