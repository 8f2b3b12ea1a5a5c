"""The configs of configs/classification/: which row of the paper's tables each is, and what it trains."""

import pytest
import torch
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, init_default_scope
from tiny import ROOT

from adn_mmdet import SkipConfig
from adn_mmdet.config import load_config
from adn_mmdet.cost import count_costs, default_input_size

FOLDER = ROOT / 'configs' / 'classification'
CONFIGS = sorted(str(path.relative_to(FOLDER))[:-3] for path in FOLDER.rglob('*.py'))
NETWORKS = {'resnet50': ('AdaptiveDepthResNet', 'ShallowResNet', 'ResNet')}  # ADN, base-net alone, super-net alone


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


# Parameters in millions of ADN, base-net alone and super-net alone.
PARAMETERS = {'resnet50': (25.583, 17.11, 25.557)}


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_pipelines_build_from_anywhere(name, build, elsewhere):
    cfg = load(name)
    model = build(cfg)
    network = name.rpartition('/')[2].partition('_')[0]
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


# GMACs of super-net and base-net at 224×224, facts of the authors' networks.
@pytest.mark.parametrize('network, super_net, base_net', [('resnet50', 4.11, 2.58)])
def test_cost_is_that_of_the_paper(network, super_net, base_net):
    cfg = load(f'{network}_adn_in1k')
    assert default_input_size(cfg) == (224, 224)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    stages = model.backbone.num_stages
    costs = count_costs(model, [SkipConfig.super_net(stages), SkipConfig.base_net(stages)], (224, 224))
    assert [cost.gmacs for cost in costs] == pytest.approx([super_net, base_net], abs=0.01)


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


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.endswith('_adn_in1k')])
def test_what_trained_alone_differs_in_the_backbone_alone(name):
    adn = load(name)
    adn.pop('custom_hooks')
    for kind in ('base_', ''):
        other = load(name.replace('adn_', kind))
        for cfg in (adn, other):
            for part in ('filename', 'work_dir'):
                cfg.pop(part, None)
            cfg.model.pop('backbone', None)
        assert other.to_dict() == adn.to_dict()
