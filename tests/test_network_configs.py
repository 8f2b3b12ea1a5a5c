"""Detectors on the paper's other networks: their configs, narrowed; and what works on any adaptive-depth backbone."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from networks import REGNET, VIT_ARCH
from tiny import ROOT, batch, build

from adn_mmdet import SkipAwareDistillationHook, SkipConfig, UserError
from adn_mmdet.backbones import extract_feats, find_backbone
from adn_mmdet.backbones.sharing import sharing
from adn_mmdet.checkpoints import estimate_statistics
from adn_mmdet.config import choose_codes, load_config
from adn_mmdet.cost.latency import measure_latency
from adn_mmdet.cost.macs import count_costs_by_part
from adn_mmdet.export.graphs import require_graph
from adn_mmdet.export.stock_backbone import require_exported
from adn_mmdet.export.sub_net import plain_detector

CHANNELS = 16
CONFIGS = {
    'mask_rcnn_swin-t_adn_1x_coco': 'AdaptiveDepthSwin',
    'retinanet_swin-t_adn_1x_coco': 'AdaptiveDepthSwin',
    'faster_rcnn_mobilenetv2_adn_1x_coco': 'AdaptiveDepthMobileNetV2',
    'ssdlite_mobilenetv2_adn_600e_coco': 'AdaptiveDepthMobileNetV2',
    'faster_rcnn_vit-b16_adn_1x_coco': 'AdaptiveDepthViT',
}
every_config = pytest.mark.parametrize('name', CONFIGS)


def load(name):
    return Config.fromfile(str(ROOT / 'configs' / f'{name}.py'))


def narrow_backbone(cfg, name):
    backbone = cfg.model.backbone
    backbone.init_cfg = None
    if 'swin' in name:
        backbone.update(embed_dims=8, num_heads=(1, 2, 4, 8), window_size=4)
        cfg.model.neck.in_channels = [8 * 2**stage for stage in backbone.out_indices]
    elif 'vit' in name:
        backbone.update(arch=VIT_ARCH | dict(num_layers=12), window_size=2, img_size=64)
        cfg.model.neck.update(in_channels=16, norm_cfg=dict(type='GN', num_groups=4))
    else:
        backbone.update(widen_factor=0.25, frozen_stages=-1)
        cfg.model.neck.in_channels = [24, 1280] if 'ssd' in name else [8, 8, 24, 80]


def small(name):
    """A config with narrow layers and three classes."""
    cfg = load(name)
    narrow_backbone(cfg, name)
    model = cfg.model
    if 'ssd' in name:
        widths = [24, 1280, 32, 16, 16, 16]
        model.neck.out_channels = model.bbox_head.in_channels = widths
        model.bbox_head.num_classes = 3
    else:
        model.neck.out_channels = CHANNELS
    if 'roi_head' in model:
        model.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
        model.roi_head.bbox_roi_extractor.out_channels = CHANNELS
        model.roi_head.bbox_head.update(in_channels=CHANNELS, fc_out_channels=32, num_classes=3)
        if model.roi_head.get('mask_head'):
            model.roi_head.mask_roi_extractor.out_channels = CHANNELS
            model.roi_head.mask_head.update(
                in_channels=CHANNELS, conv_out_channels=CHANNELS, num_convs=1, num_classes=3
            )
        model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    elif 'ssd' not in name:
        model.bbox_head.update(in_channels=CHANNELS, feat_channels=CHANNELS, stacked_convs=1, num_classes=3)
    return cfg


def tiny(name):
    """The detector of a small config, with the same weights every time."""
    return build(small(name))


def codes_of(detector):
    backbone = find_backbone(detector)
    return [SkipConfig.super_net(backbone.num_stages), SkipConfig.base_net(backbone.num_stages)]


@pytest.fixture(scope='module')
def detectors():
    return {name: tiny(name).eval() for name in CONFIGS}


@every_config
def test_config_is_what_it_says(name, elsewhere):
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'))
    assert cfg.model.backbone.type == CONFIGS[name]
    hooks = [hook for hook in cfg.custom_hooks if hook.type == 'SkipAwareDistillationHook']
    assert len(hooks) == 1 and len(cfg.custom_hooks) == (3 if 'ssd' in name else 1)
    letters = 5 if 'mobilenet' in name else 4
    assert [str(code) for code in choose_codes(cfg, None)] == ['F' * letters]
    assert len(choose_codes(cfg, 'all')) == 2**letters
    with pytest.raises(UserError, match=f"'{'T' * (9 - letters)}' is not a skip code: it has .*{letters} in all"):
        choose_codes(cfg, 'T' * (9 - letters))
    init_default_scope('mmdet')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset
        for transform in dataset.get('dataset', dataset).pipeline:
            TRANSFORMS.build(transform)


@every_config
def test_a_training_step_reaches_both_sets_of_norms(name):
    detector = tiny(name).train()
    runner = SimpleNamespace(model=detector, iter=0, optim_wrapper=None, logger=logging.getLogger('test'))
    hook = SkipAwareDistillationHook(**{k: v for k, v in load(name).custom_hooks[-1].items() if k != 'type'})
    hook.before_train(runner)
    losses = detector(**batch(detector), mode='loss')
    total, _ = detector.parse_losses(losses)
    total.backward()
    hook.after_train(runner)
    kinds = {key.split('.')[0] for key in losses}
    assert kinds == {'super', 'base', 'kd'} and torch.isfinite(total)
    if 'vit' in name:
        assert [key for key in losses if key.startswith('kd.loss')] == [f'kd.loss_p{level}' for level in (2, 3, 4, 5)]
    without = {
        key for key, parameter in detector.named_parameters() if parameter.requires_grad and parameter.grad is None
    }
    assert not without  # as DDP needs it
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in detector.backbone.state_dict().items()}
    optimizer.step()
    after = detector.backbone.state_dict()
    moved = [key for key in before if key.endswith('_skip.weight') and not torch.equal(before[key], after[key])]
    trained = [key for key, value in detector.backbone.named_parameters() if key.endswith('_skip.weight')]
    assert len(moved) == len(trained) - ('faster_rcnn_mobilenet' in name)  # the last convolution is not used


@every_config
def test_one_pass_over_many_depths(name, detectors):
    """Shared stages and outputs: equal to the bit, and each block runs once for what comes before it."""
    detector, images = detectors[name], torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backbone = find_backbone(detector)
    codes = SkipConfig.all(backbone.num_stages)[:: 2 if backbone.num_stages == 4 else 5]
    runs = []
    first = backbone.sub_paths[0].mandatory[0]
    handle = first.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        alone = extract_feats(detector, images, codes)
        assert len(runs) == len(codes)
        runs.clear()
        with sharing(detector):
            shared = extract_feats(detector, images, codes)
    handle.remove()
    assert len(runs) == len({code.flags[0] for code in codes})
    for code, feats in alone.items():
        assert all(map(torch.equal, feats, shared[code])), code
    assert len({float(feats[0].sum()) for feats in alone.values()}) == len(codes)


@every_config
def test_complexity_and_latency(name, detectors):
    detector = detectors[name]
    costs = count_costs_by_part(detector, codes_of(detector), (64, 64))
    assert costs[0].backbone_gmacs > costs[1].backbone_gmacs > 0
    assert costs[0].gmacs - costs[1].gmacs == pytest.approx(costs[0].backbone_gmacs - costs[1].backbone_gmacs)
    assert costs[0].params_active_m > costs[1].params_active_m
    rows = measure_latency(detector, codes_of(detector), (64, 64), rounds=1, warmup=0)
    assert [row.skip for row in rows] == [str(code) for code in codes_of(detector)] and rows[1].ms > 0


def with_backbone(**backbone):
    """The small RetinaNet on another backbone."""
    cfg = small('retinanet_swin-t_adn_1x_coco')
    cfg.model.backbone = backbone
    return cfg


VIT = dict(type='AdaptiveDepthViT', arch=VIT_ARCH | dict(num_layers=12), with_cls_token=False, out_type='featmap')
ON_VIT = with_backbone(**VIT, img_size=64, out_indices=[1, 4, 7, 11], frozen_stages=3, with_cp=True)
ON_VIT.model.neck.update(in_channels=[16] * 4, start_level=0)
PLAIN_REGNET = dict(type='AdaptiveDepthRegNet', arch=REGNET, norm_eval=False)
ON_REGNET = with_backbone(**PLAIN_REGNET, out_indices=(1, 2, 3))
ON_REGNET.model.neck.in_channels = [32, 64, 128]
GROUPED = dict(type='AdaptiveDepthResNeXt', depth=50, groups=4, base_width=4, base_channels=8, norm_eval=False)
ON_RESNEXT = with_backbone(**GROUPED, out_indices=(1, 2, 3))
ON_RESNEXT.model.neck.in_channels = [64, 128, 256]
EXPORTED = {
    'retinanet_swin-t_adn_1x_coco': ('mmdet.SwinTransformer', 'TFTT'),
    'ssdlite_mobilenetv2_adn_600e_coco': ('torch.hub.load', 'FTFTF'),
    'vit': ('mmpretrain.VisionTransformer', 'TFTT'),
    'regnet': ('torch.hub.load', 'FFTT'),
    'resnext': ('torch.hub.load', 'TFTF'),
}
OTHERS = {'vit': ON_VIT, 'regnet': ON_REGNET, 'resnext': ON_RESNEXT}


@torch.no_grad()
@pytest.mark.parametrize('name', EXPORTED)
def test_a_depth_is_exported_as_a_stock_network(name, detectors):
    """Its predictions to the bit, by mmdet's and mmpretrain's classes alone."""
    cfg = OTHERS[name] if name in OTHERS else small(name)
    detector = detectors[name] if name in detectors else build(cfg).eval()
    data = batch(detector)
    kind, code = EXPORTED[name]
    skip = SkipConfig.parse(code, detector.backbone.letter_groups)
    require_exported(detector.backbone, skip, fuse=False)
    plain_cfg, plain = plain_detector(cfg, detector, skip)
    assert plain_cfg.model.backbone.type == kind
    assert not [module for module in plain.modules() if type(module).__module__.startswith('adn_mmdet')]
    with detector.backbone.using_skip(code):
        found = detector(**data, mode='predict')
    for sample, expected in zip(plain(**data, mode='predict'), found, strict=True):
        assert len(expected.pred_instances)
        for key, value in expected.pred_instances.items():
            assert torch.equal(torch.as_tensor(sample.pred_instances[key]), torch.as_tensor(value)), key


def test_what_no_stock_network_is(detectors):
    windows = detectors['faster_rcnn_vit-b16_adn_1x_coco']
    on_vit = build(ON_VIT)
    on_vit.backbone.out_indices = [1, 2, 11]
    letters = [SkipConfig.parse(code) for code in ('FFFF', 'TFFF')]
    require_exported(on_vit.backbone, letters[0], fuse=False)
    refusals = {
        'has no windows': lambda: require_exported(windows.backbone, letters[0], fuse=False),
        'cannot be exported at TFFF': lambda: require_exported(on_vit.backbone, letters[1], fuse=False),
        '--fuse is for .*, not AdaptiveDepthViT': lambda: require_exported(on_vit.backbone, letters[0], fuse=True),
        'right for one size alone': lambda: require_graph(on_vit),
        'SimpleFeaturePyramid cannot be exported, as mmdet has no such class': lambda: plain_detector(
            small('faster_rcnn_vit-b16_adn_1x_coco'), windows, letters[0]
        ),
    }
    for message, refused in refusals.items():
        with pytest.raises(UserError, match=message) as error:
            refused()
        assert '\n' not in str(error.value)


def test_mmdets_own_ssd_head_cannot_predict(detectors):
    """Why there is a mended one; where this fails, mmdet has mended its own."""
    detector = detectors['ssdlite_mobilenetv2_adn_600e_coco']
    data = batch(detector)
    assert len(detector(**data, mode='predict')) == 2
    head = detector.bbox_head
    head.__class__ = type(head).__mro__[1]
    with pytest.raises(AttributeError, match='loss_cls'):
        detector(**data, mode='predict')
    head.__class__ = MODELS.get('PredictingSSDHead')


def test_attention_counts(detectors):
    """A skipped block of ViT saves its linear layers, its norms and its attention, of 16 patches in windows of 4."""
    detector = detectors['faster_rcnn_vit-b16_adn_1x_coco']
    costs = count_costs_by_part(detector, [SkipConfig.parse(code) for code in ('FFFF', 'TFFF')], (64, 64))
    tokens, width, hidden, window = 16, 16, 32, 4
    linear = tokens * width * (3 * width + width + 2 * hidden)
    attention = 2 * tokens * window * width
    norms = 2 * 5 * tokens * width  # five operations a value, as mmengine counts them
    saved = 1e9 * (costs[0].backbone_gmacs - costs[1].backbone_gmacs)
    assert saved == pytest.approx(linear + attention + norms, abs=1)


@pytest.mark.parametrize('name', ['retinanet_swin-t_adn_1x_coco', 'faster_rcnn_mobilenetv2_adn_1x_coco'])
def test_recalibration_is_of_batch_norms(name, detectors):
    detector = detectors[name]
    data = dict(inputs=[torch.randint(256, (3, 64, 64), dtype=torch.uint8)] * 2)
    data = [dict(data, data_samples=batch(detector)['data_samples'])]
    if 'swin' in name:
        with pytest.raises(UserError, match='has no batch norm in backbone and neck at TTTT: there is none') as error:
            estimate_statistics(detector, 'TTTT', data)
        assert '\n' not in str(error.value)
        return
    statistics, number = estimate_statistics(detector, 'TTTTT', data)
    assert number == 2 and {key for key in statistics if 'layer3.1' in key and 'running_mean' in key} == {
        f'backbone.layer3.1.{conv}.bn_skip.running_mean' for conv in ('expand_conv', 'depthwise_conv', 'linear_conv')
    }


def test_windows_of_vit_are_those_of_attention_by_hand(detectors):
    """One windowed block of a map that windows do not fit, against attention within each window, cut out by hand."""
    block = detectors['faster_rcnn_vit-b16_adn_1x_coco'].backbone.layers[0]
    x = torch.randn(2, 3 * 5, 16, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x.view(2, 3, 5, 16), (0, 0, 0, 1, 0, 1))
    expected = torch.zeros_like(padded)
    for row in (0, 2):
        for column in (0, 2, 4):
            window = padded[:, row : row + 2, column : column + 2]
            attended = block.attn(window.reshape(2, 4, 16)).view(2, 2, 2, 16)
            expected[:, row : row + 2, column : column + 2] = attended
    assert torch.allclose(block.attend(x, (3, 5)), expected[:, :3, :5].reshape(2, 15, 16), atol=1e-6)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch=VIT_ARCH | dict(num_layers=10)), 'number of blocks should be a multiple of 4, but .* has 10'),
        (dict(window_size=2), 'a class token is in no window: set with_cls_token=False'),
        (dict(global_blocks=(2,)), r'global_blocks \[2\] can be skipped'),
        (dict(skip='TT'), "'TT' is not a skip code"),
    ],
    ids=['blocks', 'window', 'global', 'skip'],
)
def test_bad_settings_of_vit(options, message):
    with pytest.raises(UserError, match=message) as error:
        MODELS.build(dict(type='AdaptiveDepthViT') | dict(arch=VIT_ARCH | dict(num_layers=12), img_size=64) | options)
    assert '\n' not in str(error.value)
