"""What holds of the paper's other networks as of ResNet (test_resnet.py)."""

import copy
import importlib.util
import pickle
import sys
import threading
import warnings

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from networks import FOUR, NETWORKS, hand_assembled, images, same_weights

from adn_mmdet import UserError

every_network = pytest.mark.parametrize('name', NETWORKS)
each_of_four = pytest.mark.parametrize('name', FOUR)


def assert_equal(outputs, expected):
    for output, other in zip(outputs, expected, strict=True):
        assert torch.equal(output, other)


def base(name):
    return 'T' * len(NETWORKS[name].blocks)


@every_network
@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
def test_super_net_is_the_stock_network(name, train):
    """Outputs, gradients and statistics; in training with stochastic depth, drawn alike."""
    network = NETWORKS[name]
    adaptive, stock = same_weights(network.adaptive), same_weights(network.stock)
    stock.load_state_dict({k: v for k, v in adaptive.state_dict().items() if '_skip' not in k}, strict=True)
    inputs, results = [images().requires_grad_(), images().requires_grad_()], []
    for net, x in zip((adaptive, stock), inputs):
        net.train(train)
        torch.manual_seed(5)
        results.append(net(x))
        sum(level.square().sum() for level in results[-1]).backward()
    assert_equal(*results)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    own = {key: parameter for key, parameter in adaptive.named_parameters() if '_skip' not in key}
    for key, parameter in stock.named_parameters():
        assert (own[key].grad is None) == (parameter.grad is None), key
        assert parameter.grad is None or torch.equal(own[key].grad, parameter.grad), key
    assert all(torch.equal(adaptive.state_dict()[key], value) for key, value in stock.state_dict().items())


@every_network
def test_every_code_is_a_hand_assembled_stock_network(name):
    network = NETWORKS[name]
    adaptive = same_weights(network.adaptive).eval()
    found = set()
    with torch.no_grad():
        for code in network.codes if name in FOUR else ('TTTT', 'TFTF', 'FTFT'):
            outputs = adaptive(images(), code)
            assert_equal(outputs, hand_assembled(network, adaptive, code)(images()))
            found.add(outputs[-1].sum().item())
    assert len(found) == (len(network.codes) if name in FOUR else 3)  # no two codes are the same network


@every_network
def test_keys_are_those_of_stock_and_twins(name):
    network = NETWORKS[name]
    adaptive, stock = same_weights(network.adaptive), same_weights(network.stock)
    with pytest.warns(UserWarning, match=f'{network.num_twins} skip-aware norms.*untrained'):
        load_state_dict(adaptive, stock.state_dict(), strict=True)
    own = adaptive.state_dict()
    assert [key for key in own if '_skip.' not in key] == list(stock.state_dict())
    assert len({key.rpartition('.')[0] for key in own if '_skip.' in key}) == network.num_twins
    assert all(torch.equal(own[key], stock.state_dict()[key.replace('_skip', '')]) for key in own)
    trained = {key: value + 1 for key, value in own.items()}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_state_dict(adaptive, trained, strict=True)
    assert all(torch.equal(value, trained[key]) for key, value in adaptive.state_dict().items())
    assert adaptive.num_untrained_norms == 0
    assert not any('_skip' in key for key in network.adaptive(skip_aware_norm=False).state_dict())


@every_network
def test_norms_that_are_idle(name):
    """A pass gives gradients to all weights but those of the blocks and norms that it is said not to use."""
    network = NETWORKS[name]
    kwargs = dict(drop_path_rate=0.0) if name in ('swin', 'imagenet swin', 'vit') else {}
    adaptive = same_weights(network.adaptive, **kwargs)
    for code in (base(name), 'F' * len(base(name)), 'TF' * 2 + 'T' * (len(base(name)) - 4)):
        adaptive.zero_grad()
        sum(level.square().sum() for level in adaptive(images(), code)).backward()
        unused = [*adaptive.skipped_blocks(code), *adaptive.idle_norms(code)]
        expected = {id(parameter) for module in unused for parameter in module.parameters()}
        assert {id(parameter) for parameter in adaptive.parameters() if parameter.grad is None} == expected, code
        assert len(adaptive.idle_norms(code)) == network.num_twins


@each_of_four
def test_activation_checkpointing_recomputes_at_the_same_skip(name):
    gradients = []
    for with_cp in (False, True):
        backbone = same_weights(NETWORKS[name].adaptive, with_cp=with_cp).train()
        torch.manual_seed(3)
        x = images().requires_grad_()
        with backbone.using_skip(base(name)):
            outputs = backbone(x)
        backbone.set_skip('F' * backbone.num_stages)
        sum(level.square().sum() for level in outputs).backward()
        gradients.append([*outputs, x.grad, *(p.grad for p in backbone.parameters() if p.grad is not None)])
    assert_equal(*gradients)


@each_of_four
def test_threads_never_mix(name):
    backbone = same_weights(NETWORKS[name].adaptive).eval()
    codes = ('F' * backbone.num_stages, base(name))
    expected = {code: backbone(images(), code) for code in codes}
    barrier, wrong = threading.Barrier(2), []

    def run(code):
        with torch.no_grad(), backbone.using_skip(code):
            for _ in range(4):
                barrier.wait(timeout=60)
                if not all(map(torch.equal, backbone(images()), expected[code])):
                    wrong.append(code)

    threads = [threading.Thread(target=run, args=(code,)) for code in codes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@each_of_four
@pytest.mark.parametrize('copier', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_run_at_the_skip_in_force(name, copier):
    backbone = same_weights(NETWORKS[name].adaptive).eval()
    with backbone.using_skip(base(name)):
        other = copier(backbone)
        assert_equal(other(images()), backbone(images()))
    assert str(other.skip) == base(name) and str(backbone.skip) == 'F' * backbone.num_stages
    assert backbone.eval() is backbone and backbone.train() is backbone


@pytest.mark.parametrize('name', ['swin', 'imagenet swin', 'vit'])
def test_stochastic_depth_is_off_where_a_stage_is_skipped(name):
    backbone = same_weights(NETWORKS[name].adaptive, drop_path_rate=0.9).train()
    with torch.no_grad():
        assert_equal(backbone(images(), 'TTTT'), backbone(images(), 'TTTT'))
        assert not torch.equal(backbone(images(), 'FFFF')[-1], backbone(images(), 'FFFF')[-1])


def test_the_two_swins_differ_only_where_a_map_is_a_window():
    kwargs = dict(img_size=64, window_size=2, pad_small_map=True)
    imagenet = same_weights(NETWORKS['imagenet swin'].adaptive, **kwargs).eval()
    detection = same_weights(NETWORKS['swin'].adaptive, window_size=2).eval()
    detection.load_state_dict(imagenet.state_dict())
    small = NETWORKS['imagenet swin'].adaptive().eval()
    small.load_state_dict(imagenet.state_dict())
    for code in ('FFFF', 'TFTF'):
        assert_equal(detection(images(), code), imagenet(images(), code))
        assert_equal(small(images(), code)[:-1], imagenet(images(), code)[:-1])
    assert not torch.equal(small(images(), 'FFFF')[-1], imagenet(images(), 'FFFF')[-1])


@each_of_four
def test_a_code_of_another_length(name):
    backbone = NETWORKS[name].adaptive()
    other = 'T' * (9 - backbone.num_stages)
    with pytest.raises(UserError, match=f'{other!r} is not a skip code: .*{backbone.num_stages} in all') as error:
        backbone(images(), other)
    assert '\n' not in str(error.value)


@every_network
def test_a_stage_is_a_module_of_its_own(name):
    """What is distilled of a classifier: one output a letter, whatever the code; a map, or ViT's tokens."""
    backbone = same_weights(NETWORKS[name].adaptive, **(dict(out_indices=range(1, 6)) if name == 'mobilenet' else {}))
    backbone.eval()
    found = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda module, inputs, output: found.append(output.shape))
    for code in ('F' * backbone.num_stages, base(name)):
        found.clear()
        shapes = [output.shape for output in backbone(images(), code)]
        assert found == ([(2, 17, 16)] * 4 if name == 'vit' else shapes)


def test_vit_without_mmpretrain(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpretrain.models.backbones.vision_transformer', None)
    monkeypatch.delitem(MODELS._module_dict, 'AdaptiveDepthViT')
    path = sys.modules['adn_mmdet.backbones.vit'].__file__
    spec = importlib.util.spec_from_file_location('adn_mmdet.backbones.vit_again', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # importing the package goes well
    with pytest.raises(UserError, match=r'AdaptiveDepthViT needs mmpretrain .*pip install "adn_mmdet\[cls\]"') as error:
        MODELS.build(dict(type='AdaptiveDepthViT', arch='b', patch_size=16))
    assert '\n' not in str(error.value)


def test_settings_of_swin_that_have_no_depth():
    with pytest.raises(UserError, match='depths should be of 4 stages, but got 3'):
        NETWORKS['swin'].adaptive(depths=(2, 2, 2), num_heads=(1, 2, 4), strides=(4, 2, 2), out_indices=(0, 1, 2))
    with pytest.raises(UserError, match='out_after_downsample=True is not for AdaptiveDepthSwin'):
        NETWORKS['imagenet swin'].adaptive(out_after_downsample=True)


@pytest.mark.parametrize('blocks', [(1, 2, 2, 2), (1, 2, 0, 2, 2)])
def test_bad_stage_blocks_of_mobilenet(blocks):
    with pytest.raises(UserError, match='stage_blocks should be 5 positive numbers'):
        NETWORKS['mobilenet'].shallow(blocks)


def test_names_that_stand_in_mmpretrains_scope():
    from mmpretrain.registry import MODELS as PRETRAIN_MODELS

    assert PRETRAIN_MODELS.get('AdaptiveDepthSwin') is type(NETWORKS['imagenet swin'].adaptive())
    assert MODELS.get('AdaptiveDepthSwin') is type(NETWORKS['swin'].adaptive())
    for name in ('AdaptiveDepthViT', 'AdaptiveDepthMobileNetV2', 'AdaptiveDepthResNeXt', 'AdaptiveDepthRegNet'):
        assert PRETRAIN_MODELS.get(name) is MODELS.get(name)
