"""The configs of configs/classification/: which row of the paper's tables each is, and what it trains."""

import mmcv
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, init_default_scope
from tiny import ROOT

from adn_mmdet import SkipConfig
from adn_mmdet.config import load_config
from adn_mmdet.cost import count_costs, default_input_size
from adn_mmdet.distillation import DistillationSettings

FOLDER = ROOT / 'configs' / 'classification'
CONFIGS = sorted(str(path.relative_to(FOLDER))[:-3] for path in FOLDER.rglob('*.py'))
# The backbones of ADN, base-net alone and super-net alone, and parameters of the three in millions.
NETWORKS = {
    'resnet50': ('AdaptiveDepthResNet', 'ShallowResNet', 'ResNet'),
    'mobilenetv2': ('AdaptiveDepthMobileNetV2', 'ShallowMobileNetV2', 'MobileNetV2'),
    'vit-b16': ('AdaptiveDepthViT', 'VisionTransformer', 'VisionTransformer'),
    'vit-b32': ('AdaptiveDepthViT', 'VisionTransformer', 'VisionTransformer'),
    'swin-t': ('ImageNetSwin', 'SwinTransformer', 'SwinTransformer'),
}
PARAMETERS = {
    'resnet50': (25.583, 17.11, 25.557),
    'mobilenetv2': (3.528, 2.934, 3.505),
    'vit-b16': (86.592, 58.22, 86.568),
    'vit-b32': (88.249, 59.87, 88.224),
    'swin-t': (28.303, 15.31, 28.288),
}


def load(name):
    return load_config(str(FOLDER / f'{name}.py'))


def test_small_images_are_counted_at_their_size():
    assert default_input_size(load('resnet50_narrow_adn_fashion_mnist')) == (32, 32)


def test_every_row_of_table_1_has_its_config():
    assert {f'{network}_{kind}in1k' for network in NETWORKS for kind in ('adn_', 'base_', '')} <= set(CONFIGS)


@pytest.fixture
def build(monkeypatch):
    """Builds the model of a config, without weights."""
    linspace = torch.linspace  # of drop path rates, which are read
    monkeypatch.setattr(torch, 'linspace', lambda *args, **kwargs: linspace(*args, **kwargs, device='cpu'))
    init_default_scope('mmpretrain')

    def build(cfg):
        with torch.device('meta'):
            return MODELS.build(cfg.model)

    return build


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_pipelines_build_from_anywhere(name, build, elsewhere):
    cfg = load(name)
    model = build(cfg)
    network = name.rpartition('/')[2].partition('_')[0]
    network = {'vit': 'vit-b16'}.get(network, network)  # the narrow one
    kind = 0 if '_adn_' in name else 1 if '_base_' in name else 2
    assert type(model.backbone).__name__ == NETWORKS[network][kind]
    if '/' not in name and name.endswith('in1k'):
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert millions == pytest.approx(PARAMETERS[network][kind], abs=0.005)
    has_hook = any(hook.type == 'SkipAwareDistillationHook' for hook in cfg.get('custom_hooks', []))
    assert has_hook == (kind == 0)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for transform in cfg[loader].dataset.pipeline:
            TRANSFORMS.build(transform)


# GMACs of super-net and base-net of the authors' networks, at 224×224; mmengine's counter counts norms as well.
@pytest.mark.parametrize(
    'network, super_net, base_net', [('resnet50', 4.11, 2.58), ('mobilenetv2', 0.301, 0.205), ('swin-t', 4.49, 2.34)]
)
def test_cost_is_that_of_the_paper(network, super_net, base_net):
    cfg = load(f'{network}_adn_in1k')
    assert default_input_size(cfg) == (224, 224)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    stages = model.backbone.num_stages
    costs = count_costs(model, [SkipConfig.super_net(stages), SkipConfig.base_net(stages)], (224, 224))
    assert [cost.gmacs for cost in costs] == pytest.approx([super_net, base_net], rel=0.05)


def test_resnet50_trains_as_the_authors_did():
    cfg = load('resnet50_adn_in1k')
    settings = HOOKS.build(cfg.custom_hooks[0]).settings
    assert (settings.alpha, settings.gt_weight, settings.mode) == (0.5, 0.0, 'joint')
    assert (settings.prediction_weight, settings.top_k) == (1.0, 500)
    assert (settings.kd_weight, settings.feature, settings.temperature) == (1.0, 'gap_channel', 1.0)
    assert list(settings.levels) == [0, 1, 2]
    assert cfg.model.backbone.norm_eval is False  # both sets of norms learn
    optimizer, scheduler = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.1, 0.9, 1e-4)
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    assert (scheduler.milestones, scheduler.gamma, cfg.train_cfg.max_epochs) == ([60, 100, 140], 0.1, 150)
    assert cfg.auto_scale_lr.base_batch_size == 256


def test_the_other_networks_learn_from_the_logits_alone():
    for network in ('mobilenetv2', 'vit-b16', 'vit-b32', 'swin-t'):
        settings = HOOKS.build(load(f'{network}_adn_in1k').custom_hooks[0]).settings
        assert settings == DistillationSettings(gt_weight=0.0, kd_weight=0.0, prediction_weight=1.0, top_k=500)


# What the authors trained with: epochs, images a step, optimiser, learning rate, weight decay, limit of the gradient.
@pytest.mark.parametrize(
    'network, recipe',
    [
        ('mobilenetv2', (300, 256, 'SGD', 0.1, 1e-5, None)),
        ('vit-b16', (300, 1024, 'AdamW', 7.5e-4, 0.2, 1.0)),
        ('swin-t', (300, 1024, 'AdamW', 1e-3, 0.05, 5.0)),
    ],
)
def test_recipes(network, recipe):
    cfg = load(f'{network}_adn_in1k')
    optim = cfg.optim_wrapper
    limit = (optim.get('clip_grad') or {}).get('max_norm')
    found = (optim.optimizer.type, optim.optimizer.lr, optim.optimizer.weight_decay, limit)
    assert (cfg.train_cfg.max_epochs, cfg.auto_scale_lr.base_batch_size, *found) == recipe
    if network == 'mobilenetv2':
        assert cfg.param_scheduler.milestones == [150, 225, 285] and cfg.param_scheduler.gamma == 0.1
        return
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.eta_min) == ((30, 0.0) if network == 'vit-b16' else (20, 1e-5))
    assert cfg.train_dataloader.sampler.num_repeats == (3 if network == 'vit-b16' else 4)
    assert cfg.model.head.loss.label_smooth_val == (0.11 if network == 'vit-b16' else 0.1)
    assert [part.alpha for part in cfg.model.train_cfg.augments] == ([0.2, 1.0] if network == 'vit-b16' else [0.8, 1.0])
    assert cfg.model.backbone.get('drop_rate', 0.0) == 0 and cfg.model.head.get('hidden_dim') is None
    assert cfg.model.backbone.get('drop_path_rate', 0.1) == 0.1 and cfg.custom_hooks[1].type == 'EMAHook'


def test_pipelines_make_images_of_224(elsewhere):
    mmcv.imwrite(np.zeros((300, 400, 3), np.uint8), 'a.png')
    for name in ('resnet50_adn_in1k', 'vit-b16_adn_in1k', 'swin-t_adn_in1k'):
        cfg = load(name)
        init_default_scope('mmpretrain')
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            with TRANSFORMS.switch_scope_and_registry(None):
                made = Compose(loader.dataset.pipeline)(dict(img_path='a.png', gt_label=1))
            assert made['inputs'].shape == (3, 224, 224)


# The rows of Table 4: whether there are two sets of norms, and what the distillation compares.
@pytest.mark.parametrize(
    'row, norms, features, predictions',
    [
        ('resnet50_adn_no_norms_no_kd', False, False, False),
        ('resnet50_adn_no_norms', False, True, True),
        ('resnet50_adn_no_kd', True, False, False),
        ('resnet50_adn_logit_kd', True, False, True),
        ('vit-b32_adn_no_norms_no_kd', False, False, False),
        ('vit-b32_adn_no_norms', False, False, True),
        ('vit-b32_adn_no_kd', True, False, False),
    ],
)
def test_ablations_switch_off_what_they_say(row, norms, features, predictions):
    cfg, plain = load(f'ablations/{row}_in1k'), load(f'{row.partition("_")[0]}_adn_in1k')
    settings = HOOKS.build(cfg.custom_hooks[0]).settings
    assert cfg.model.backbone.pop('skip_aware_norm', True) == norms
    assert [bool(settings.kd_weight), bool(settings.prediction_weight)] == [features, predictions]
    assert settings.gt_weight == (0.0 if predictions else 1.0)  # without distillation both nets have the labels
    assert cfg.custom_hooks[1:] == plain.custom_hooks[1:]
    for part in ('custom_hooks', 'filename', 'work_dir'):
        cfg.pop(part), plain.pop(part)
    assert cfg.to_dict() == plain.to_dict()  # nothing else differs


@pytest.mark.parametrize('name', [f'{network}_adn_in1k' for network in NETWORKS])
def test_what_trained_alone_differs_in_the_backbone_alone(name):
    adn = load(name)
    adn.custom_hooks = adn.custom_hooks[1:]
    for kind in ('base_', ''):
        other = load(name.replace('adn_', kind))
        other.custom_hooks = other.get('custom_hooks', [])
        for cfg in (adn, other):
            for part in ('filename', 'work_dir'):
                cfg.pop(part, None)
            cfg.model.pop('backbone', None)
        assert other.to_dict() == adn.to_dict()
