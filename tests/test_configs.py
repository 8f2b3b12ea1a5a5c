import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import HOOKS, init_default_scope
from tiny import ROOT

from adn_mmdet import SkipConfig
from adn_mmdet.cost import count_costs, default_input_size

CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs'))[:-3]
    for path in (ROOT / 'configs').rglob('[!_]*.py')
    if not {'_base_', 'classification'} & set(path.parts)  # the latter: test_classification_configs.py
    and not any(network in path.stem for network in ('swin', 'mobilenet', 'vit'))  # these: test_network_configs.py
    and not any(name in path.stem for name in ('rtmdet', 'dino', 'detr'))  # these: test_parts/test_detectors.py
)
TYPES = {'adn': 'AdaptiveDepthResNet', 'base': 'ShallowResNet'}


def load(name):
    init_default_scope('mmdet')
    return Config.fromfile(str(ROOT / 'configs' / f'{name}.py'))


def test_every_row_of_the_paper_has_its_config():
    rows = {
        f'{net}_r50_{kind}' for net in ('faster_rcnn', 'mask_rcnn', 'retinanet') for kind in ('adn_1x', '1x', 'base_1x')
    }
    assert {f'{row}_coco' for row in rows} <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_pipelines_build_from_anywhere(name, elsewhere):
    cfg = load(name)
    detector = MODELS.build(cfg.model)
    expected = next((type_ for part, type_ in TYPES.items() if f'_{part}_' in name), 'ResNet')
    assert type(detector.backbone).__name__ == expected
    has_hook = any(hook.type == 'SkipAwareDistillationHook' for hook in cfg.get('custom_hooks', []))
    assert has_hook == (expected == 'AdaptiveDepthResNet')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for transform in cfg[loader].dataset.pipeline:
            TRANSFORMS.build(transform)


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.endswith('_1x_coco')])
def test_frozen_as_the_comparison_needs(name):
    cfg = load(name)
    backbone = cfg.model.backbone
    learns_both_norm_sets = '_tv_' in name
    assert cfg.get('sync_bn') == ('torch' if learns_both_norm_sets else None)
    assert backbone.norm_eval is not learns_both_norm_sets
    assert backbone.frozen_stages == (-1 if learns_both_norm_sets else 1)


# facts of the paper, Table 5: GMACs of super-net and base-net at 1280×800
@pytest.mark.parametrize(
    'detector, super_net, base_net', [('faster_rcnn', 207.07, 175.66), ('mask_rcnn', 260.14, 228.73)]
)
def test_cost_is_that_of_the_paper(detector, super_net, base_net):
    cfg = load(f'{detector}_r50_adn_1x_coco')
    assert default_input_size(cfg) == (800, 1280)
    codes = [SkipConfig.super_net(4), SkipConfig.base_net(4)]
    costs = [cost.gmacs for cost in count_costs(MODELS.build(cfg.model), codes, (800, 1280))]
    assert costs == pytest.approx([super_net, base_net], rel=2e-3)


@pytest.mark.parametrize('detector', ['faster_rcnn', 'mask_rcnn', 'retinanet'])
@pytest.mark.parametrize('depth, mandatory', [(50, [2, 2, 3, 2]), (101, [2, 2, 12, 2])])
def test_vd_variants_differ_in_the_backbone_alone(detector, depth, mandatory):
    cfg, plain = load(f'{detector}_r{depth}vd_adn_1x_coco'), load(f'{detector}_r50_adn_1x_coco')
    backbone = cfg.model.backbone
    assert (backbone.depth, backbone.avg_down) == (depth, True)
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=f'adn://resnet{depth}vd')
    with torch.device('meta'):
        stages = MODELS.build(backbone).stages
    assert [len(stage.mandatory) for stage in stages] == mandatory
    backbone.pop('avg_down')
    backbone.update(depth=50, init_cfg=plain.model.backbone.init_cfg)
    assert cfg.to_dict() | {'filename': ''} == plain.to_dict() | {'filename': ''}


@pytest.mark.parametrize('detector', ['faster_rcnn', 'mask_rcnn'])
def test_multi_scale_recipes_differ_in_the_size_of_training_images_alone(detector):
    cfg, plain = load(f'{detector}_r50_adn_ms_1x_coco'), load(f'{detector}_r50_adn_1x_coco')
    steps, others = cfg.train_dataloader.dataset.pipeline, plain.train_dataloader.dataset.pipeline
    (index,) = (index for index, step in enumerate(others) if step.type == 'Resize')
    image = dict(img=np.zeros((400, 640, 3), np.uint8))
    resize = TRANSFORMS.build(steps[index])
    sides = {min(resize(dict(image, img_shape=(400, 640)))['img'].shape[:2]) for _ in range(60)}
    assert min(sides) < 500 and max(sides) > 780 and len(sides) > 6
    rest = [[dict(step, _scope_=None) for step in each[:index] + each[index + 1 :]] for each in (steps, others)]
    assert rest[0] == rest[1]
    cfg.train_dataloader.dataset.pop('pipeline'), plain.train_dataloader.dataset.pop('pipeline')
    assert cfg.train_dataloader == plain.train_dataloader
    for part in ('model', 'test_dataloader', 'custom_hooks', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        assert cfg[part] == plain[part]


# The rows of the paper's Table 4: whether there are two sets of norms, and what the distillation compares.
@pytest.mark.parametrize(
    'row, norms, features, predictions',
    [
        ('no_norms_no_kd', False, False, False),
        ('no_norms', False, True, False),
        ('no_kd', True, False, False),
        ('prediction_kd', True, False, True),
    ],
)
def test_ablations_switch_off_what_they_say(row, norms, features, predictions):
    cfg = load(f'ablations/faster_rcnn_r50_adn_{row}_1x_coco')
    hook = HOOKS.build(cfg.custom_hooks[0])
    assert cfg.model.backbone.get('skip_aware_norm', True) == norms
    assert [bool(getattr(hook.settings, f'{part}_weight')) for part in ('kd', 'prediction')] == [features, predictions]
    plain = load('faster_rcnn_r50_adn_1x_coco')
    for part in ('custom_hooks', 'filename'):
        cfg.pop(part, None), plain.pop(part, None)
    cfg.model.backbone.pop('skip_aware_norm', None)
    assert cfg.to_dict() == plain.to_dict()  # nothing else differs
