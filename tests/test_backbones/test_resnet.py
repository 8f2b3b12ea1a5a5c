import copy
import pickle
import threading

import pytest
import torch
from mmdet.models import ResNet
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from tiny import randomize_norms

from adn_mmdet import AdaptiveDepthResNet, ShallowResNet, SkipConfig, UserError, set_skip
from adn_mmdet.backbones import find_backbone, num_mandatory

CODES = [str(skip) for skip in SkipConfig.all(4)]
MANDATORY = (2, 2, 3, 2)


def narrow(backbone_class=AdaptiveDepthResNet, depth=50, **kwargs):
    torch.manual_seed(0)
    backbone = backbone_class(depth, base_channels=8, **{'norm_eval': False, **kwargs})
    randomize_norms(backbone)
    return backbone


def images(seed=0):
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def assert_equal(outputs, expected):
    for output, other in zip(outputs, expected, strict=True):
        assert torch.equal(output, other)


def hand_assembled(adaptive, code):
    """A stock network of just the blocks that a code runs, with the norms that it uses."""
    flags = SkipConfig.parse(code)
    blocks = [few if flag else all_ for few, all_, flag in zip(MANDATORY, (3, 4, 6, 3), flags)]
    stock = narrow(ShallowResNet, stage_blocks=blocks)
    weights = adaptive.state_dict()
    for key in stock.state_dict():
        stage = int(key[5]) - 1 if key.startswith('layer') else None
        skip_key = '.'.join((part + '_skip') if part.startswith('bn') else part for part in key.split('.'))
        if stage is not None and flags.flags[stage] and skip_key in weights and skip_key != key:
            weights[key] = weights[skip_key]
    stock.load_state_dict({key: weights[key] for key in stock.state_dict()})
    return stock


@pytest.mark.parametrize('options', [{}, dict(avg_down=True), dict(deep_stem=True), dict(frozen_stages=2)], ids=str)
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('depth', [50, 101])
def test_super_net_is_stock_resnet(depth, train, options):
    adaptive, stock = narrow(depth=depth, **options), narrow(ResNet, depth, **options)
    weights = {key: value for key, value in adaptive.state_dict().items() if '_skip' not in key}
    stock.load_state_dict(weights, strict=True)
    adaptive.train(train)
    stock.train(train)
    inputs = [images().requires_grad_(), images().requires_grad_()]
    outputs = [net(x) for net, x in zip((adaptive, stock), inputs)]
    assert_equal(*outputs)
    for output in outputs:
        sum(level.square().sum() for level in output).backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for (name, parameter), other in zip(
        ((n, p) for n, p in adaptive.named_parameters() if '_skip' not in n), stock.parameters(), strict=True
    ):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name
    for key, value in stock.state_dict().items():  # running statistics too
        assert torch.equal(adaptive.state_dict()[key], value), key


@pytest.mark.parametrize('code', CODES)
def test_every_code_is_a_hand_assembled_stock_network(code):
    adaptive = narrow().eval()
    assert_equal(adaptive(images(), code), hand_assembled(adaptive, code).eval()(images()))


def test_base_net_has_the_blocks_of_r50_base():
    assert [num_mandatory(n) for n in (3, 4, 6, 3)] == [2, 2, 3, 2]
    assert [num_mandatory(n) for n in (3, 4, 23, 3)] == [2, 2, 12, 2]
    adaptive = narrow()
    assert [len(stage.mandatory) for stage in adaptive.stages] == list(MANDATORY)
    assert len(adaptive.skipped_blocks('TTTT')) == 7 and len(adaptive.idle_norms('TTTT')) == 27


@pytest.mark.parametrize('zero_init', [True, False])
def test_initial_weights_are_those_of_stock(zero_init):
    nets = [AdaptiveDepthResNet(50, base_channels=8, zero_init_residual=zero_init)]
    nets.append(ResNet(50, base_channels=8, zero_init_residual=zero_init))
    for net in nets:
        torch.manual_seed(3)
        net.init_weights()
    own, stock = (net.state_dict() for net in nets)
    assert all(torch.equal(own[key], stock[key]) for key in stock)
    for key in own.keys() - stock.keys():
        assert torch.equal(own[key], own[key.replace('_skip', '')]), key
    assert (own['layer3.1.bn3_skip.weight'] == (0 if zero_init else 1)).all()


def test_norms_of_the_other_set_are_untouched():
    backbone = narrow().train()
    for code in ('FFFF', 'TTTT'):
        before = copy.deepcopy(backbone.state_dict())
        backbone(images(), code)
        moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
        mandatory = {key for key in moved if '.bn' in key and int(key.split('.')[1]) < MANDATORY[int(key[5]) - 1]}
        assert all(('_skip' in key) == (code == 'TTTT') for key in mandatory) and len(mandatory) == 27 * 3
        assert {'bn1.running_mean', 'layer1.0.downsample.1.running_mean'} <= moved  # shared by both passes


@pytest.mark.parametrize('code', ['FFFF', 'TFTF', 'TTTT'])
def test_activation_checkpointing_recomputes_at_the_same_skip(code):
    gradients = []
    for with_cp in (False, True):
        backbone = narrow(with_cp=with_cp)
        x = images().requires_grad_()
        with backbone.using_skip(code):
            outputs = backbone(x)
        backbone.set_skip('FTFT')
        sum(level.square().sum() for level in outputs).backward()
        gradients.append([*outputs, x.grad, *(p.grad for p in backbone.parameters() if p.grad is not None)])
    assert_equal(*gradients)


def test_threads_never_mix():
    backbone = narrow().eval()
    expected = {code: backbone(images(), code) for code in ('FFFF', 'TTTT')}
    barrier, wrong = threading.Barrier(2), []

    def run(code):
        with torch.no_grad(), backbone.using_skip(code):
            for _ in range(10):
                barrier.wait(timeout=60)
                if not all(map(torch.equal, backbone(images()), expected[code])):
                    wrong.append(code)

    threads = [threading.Thread(target=run, args=(code,)) for code in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_skip_is_resolved_in_order_and_restored():
    backbone = narrow(skip='TFFF')
    assert str(backbone.resolve_skip()) == 'TFFF'
    with pytest.raises(RuntimeError, match='boom'), backbone.using_skip('TTTT'):
        with backbone.using_skip('FTFF'):
            assert str(backbone.resolve_skip()) == 'FTFF'
        assert str(backbone.resolve_skip()) == 'TTTT'
        assert str(backbone.resolve_skip('FFFT')) == 'FFFT'
        raise RuntimeError('boom')
    assert str(backbone.resolve_skip()) == 'TFFF'
    backbone.set_skip('ffff')
    assert str(backbone.skip) == 'FFFF'
    with pytest.raises(ValueError, match="'TT' is not a skip code"):
        backbone(images(), 'TT')


@pytest.mark.parametrize('copier', [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_independent_and_run_at_the_skip_in_force(copier):
    backbone = narrow(skip='TFFF').eval()
    assert str(copier(backbone).skip) == 'TFFF'
    with backbone.using_skip('TTTT'):
        other = copier(backbone)
        assert_equal(other(images()), backbone(images()))
    assert [str(net.resolve_skip()) for net in (other, backbone)] == ['TTTT', 'TFFF']
    other.set_skip('FFFF')
    assert str(backbone.skip) == 'TFFF'


@pytest.mark.parametrize('load', [torch.nn.Module.load_state_dict, load_state_dict], ids=['torch', 'mmengine'])
def test_stock_weights_load_and_clone_their_norms(load):
    stock, adaptive = narrow(ResNet), narrow()
    with pytest.warns(UserWarning, match='27 skip-aware norms.*untrained'):
        load(adaptive, stock.state_dict(), strict=True)
    own = adaptive.state_dict()
    assert all(torch.equal(own[key], stock.state_dict()[key.replace('_skip', '')]) for key in own)
    assert adaptive.num_untrained_norms == 27
    load(adaptive, narrow().state_dict(), strict=True)  # the authors' keys are these very names
    assert adaptive.num_untrained_norms == 0


def test_detector_weights_load_into_a_backbone():
    source, target = narrow(), narrow()
    for parameter in source.parameters():
        parameter.data += 1
    weights = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    target.load_state_dict({**weights, 'neck.weight': torch.zeros(1)}, strict=False)
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    with pytest.raises(UserError, match='fit no layer of AdaptiveDepthResNet: they hold encoder.weight'):
        target.load_state_dict({'encoder.weight': torch.zeros(1)}, strict=False)


def test_another_stage_split_is_refused():
    weights = narrow(depth=101).state_dict()
    older = {key: value for key, value in weights.items() if not key.startswith('layer3.11.bn1_skip')}
    for norm in ('bn2_skip', 'bn3_skip'):
        older = {key: value for key, value in older.items() if not key.startswith(f'layer3.11.{norm}')}
    with pytest.raises(UserError, match=r'\[2, 2, 11, 2\] mandatory blocks a stage.*\[2, 2, 12, 2\]'):
        narrow(depth=101).load_state_dict(older, strict=False)


def test_number_of_parameters():
    with torch.device('meta'):
        count = [sum(p.numel() for p in net.parameters()) for net in (AdaptiveDepthResNet(50), ResNet(50))]
    assert count[0] - count[1] == 26_112


def test_without_skip_aware_norms():
    backbone = narrow(skip_aware_norm=False).eval()
    assert not any('_skip' in key for key in backbone.state_dict())
    assert_equal(backbone(images(), 'TTTT'), hand_assembled(backbone, 'TTTT').eval()(images()))


@pytest.mark.parametrize(
    'options',
    [
        dict(out_indices=(1, 3)),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 2), skip='TTT'),
        dict(style='caffe'),
        dict(norm_cfg=dict(type='GN', num_groups=4)),
        dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, False, True, True)),
        dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 4), position='after_conv3')]),
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_mmdet_keep_working(options):
    options = dict(norm_eval=True, **options)
    torch.manual_seed(0)
    adaptive = MODELS.build(dict(type='AdaptiveDepthResNet', depth=50, base_channels=8, **copy.deepcopy(options)))
    options.pop('skip', None)
    stock = ResNet(50, base_channels=8, **copy.deepcopy(options))
    weights = adaptive.state_dict()
    stock.load_state_dict({key: weights[key] for key in stock.state_dict()})
    adaptive.eval()
    stock.eval()
    code = 'F' * adaptive.num_stages
    assert_equal(adaptive(images(), code), stock(images()))
    assert len(adaptive(images(), 'T' * adaptive.num_stages)) == len(adaptive.out_indices)


def test_frozen_stages_and_norm_eval():
    backbone = narrow(frozen_stages=1, norm_eval=True).train()
    assert not any(
        p.requires_grad for name, p in backbone.named_parameters() if name.startswith(('conv1', 'bn1', 'layer1'))
    )
    assert all(p.requires_grad for name, p in backbone.named_parameters() if name.startswith('layer2'))
    assert not any(m.training for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert backbone.eval() is backbone and backbone.train() is backbone


def test_sync_bn_conversion_keeps_both_sets():
    backbone = narrow().eval()
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone))
    assert isinstance(converted.layer1[0].bn1_skip, torch.nn.SyncBatchNorm)
    for code in ('FFFF', 'TTTT'):
        assert_equal(converted(images(), code), backbone(images(), code))


def test_set_skip_reaches_through_wrappers():
    wrapped = torch.nn.ModuleDict({'module': torch.nn.Sequential(narrow())})
    set_skip(wrapped, 'TTFF')
    assert str(find_backbone(wrapped).skip) == 'TTFF'
    with pytest.raises(UserError, match='ResNet should have one adaptive-depth backbone, but has 0'):
        set_skip(narrow(ResNet), 'TTFF')


@pytest.mark.parametrize(
    'model, skip', [(narrow(), None), (narrow(), 5), (narrow(), {}), (None, 'TTFF'), ('x', 'TTFF')]
)
def test_wrong_types_are_refused_in_one_line(model, skip):
    with pytest.raises(UserError, match='is not a skip code|should have one adaptive-depth backbone'):
        set_skip(model, skip)


def test_unknown_depth():
    with pytest.raises(ValueError, match=r'depth should be one of \(18, 34, 50, 101, 152\), but got 20'):
        AdaptiveDepthResNet(20)


@pytest.mark.parametrize('blocks', [(2, 2, 3), (2, 2, 0, 2)])
def test_bad_stage_blocks(blocks):
    with pytest.raises(ValueError, match='stage_blocks should be 4 positive numbers'):
        ShallowResNet(50, stage_blocks=blocks)
