import copy

import mmcv
import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from tiny import stock_config, tiny_config

from adn_mmdet import UserError
from adn_mmdet.input_size import default_input_size, own_size, pipeline_at, resized

PACK = dict(type='PackDetInputs', meta_keys=('img_shape', 'scale_factor'))


def with_steps(*steps, divisor=32):
    cfg = tiny_config()
    cfg.model.data_preprocessor.pad_size_divisor = divisor
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), *steps, PACK]
    return cfg


def test_cocos_own_pipeline():
    """Only the resize changes, by the ratio that the config has; the config stays as it is."""
    cfg = tiny_config()
    before = copy.deepcopy(cfg.test_dataloader)
    found = pipeline_at(cfg, 640)
    assert [step.type for step in found] == [step.type for step in before.dataset.pipeline]
    changed = [(step, own) for step, own in zip(found, before.dataset.pipeline) if step != own]
    assert [(step.scale, own.scale) for step, own in changed] == [((1066, 640), (1333, 800))]
    assert cfg.test_dataloader == before and own_size(cfg) == 800
    assert pipeline_at(cfg, 800) == pipeline_at(cfg) == before.dataset.pipeline
    assert default_input_size(cfg) == (800, 1280) and default_input_size(cfg, 640) == (640, 1024)
    assert default_input_size(cfg, 500) == (512, 800)


@pytest.mark.parametrize(
    ('steps', 'own', 'expected', 'counted'),
    [
        ([dict(type='Resize', scale=(640, 400), keep_ratio=True)], 400, [dict(scale=(320, 200))], (224, 320)),
        ([dict(type='mmdet.Resize', scale=(300, 300), keep_ratio=False)], 300, [dict(scale=(200, 200))], (224, 224)),
        ([dict(type='Resize', scale=320)], 320, [dict(scale=200)], (224, 224)),
        (
            [dict(type='ResizeEdge', scale=256), dict(type='CenterCrop', crop_size=224)],
            256, [dict(scale=200), dict(crop_size=175)], (192, 192),
        ),
        ([dict(type='FixScaleResize', scale=[800, 1333])], 800, [dict(scale=[200, 333])], (224, 320)),
        ([dict(type='ResizeShortestEdge', scale=400, max_size=600)], 400, [dict(scale=200, max_size=300)], (224, 320)),
        ([dict(type='ResizeShortestEdge', scale=400)], 400, [dict(scale=200)], (224, 224)),
        ([dict(type='FixShapeResize', width=640, height=400)], 400, [dict(width=320, height=200)], (224, 320)),
        (
            [dict(type='Resize', scale=(640, 640)), dict(type='Pad', size=(640, 640), pad_val=114)],
            640, [dict(scale=(200, 200)), dict(size=(200, 200), pad_val=114)], (224, 224),
        ),
        (
            [dict(type='Resize', scale=(640, 320)), dict(type='Pad', size_divisor=32)],
            320, [dict(scale=(400, 200)), dict(size_divisor=32)], (224, 416),
        ),
        (
            [dict(type='ProposalBroadcaster', transforms=[dict(type='Resize', scale=(640, 320))])],
            320, [dict(transforms=[dict(type='Resize', scale=(400, 200))])], (224, 416),
        ),
    ],
)  # fmt: skip
def test_what_says_the_size(steps, own, expected, counted):
    cfg = with_steps(*steps)
    wanted = [{**step, **change} for step, change in zip(steps, expected, strict=True)]
    assert pipeline_at(cfg, 200)[1:-1] == wanted
    assert own_size(cfg) == own and default_input_size(cfg, 200) == counted


def test_a_class_is_a_type_too():
    step = dict(type=TRANSFORMS.get('Resize'), scale=(640, 320))
    assert resized([step], 160) == [{**step, 'scale': (320, 160)}]


@pytest.mark.parametrize('shape', [(480, 640), (640, 480), (427, 640), (100, 1000), (64, 64)])
def test_images_become_that_size(shape):
    """As a run whose config says so: the short side is the size, unless the long one meets its limit."""
    init_default_scope('mmdet')
    pipeline = Compose(resized(tiny_config().test_dataloader.dataset.pipeline[1:2], 320))
    image = pipeline(dict(img=np.zeros((*shape, 3), np.uint8)))['img']
    expected = mmcv.imrescale(np.zeros((*shape, 3), np.uint8), (533, 320))
    assert image.shape == expected.shape
    assert min(image.shape[:2]) == 320 or abs(max(image.shape[:2]) - 533) <= 1


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        ([], r'has no steps that resize \(LoadImageFromFile, PackDetInputs\): leave the size out'),
        ([dict(type='Resize', scale=(9, 9))] * 2, 'has 2 steps that resize'),
        ([dict(type='Resize', scale_factor=0.5)], 'Resize of the test pipeline cannot be told a size'),
        ([dict(type='RandomChoiceResize', scales=[(9, 9)])], 'RandomChoiceResize of the test pipeline cannot be told'),
        ([dict(type='Resize', scale=(640, -1))], 'cannot be told a size: leave the size out, or resize by Resize, R'),
        ([dict(type='TestTimeAug', transforms=[[dict(type='Resize', scale=(9, 9))]])], 'has no steps that resize'),
    ],
)
def test_what_cannot_be_told_a_size(steps, message):
    cfg = with_steps(*steps)
    for ask in (lambda: pipeline_at(cfg, 200), lambda: own_size(cfg), lambda: default_input_size(cfg, 200)):
        with pytest.raises(UserError, match=message) as error:
            ask()
        assert '\n' not in str(error.value)
    assert pipeline_at(cfg) == cfg.test_dataloader.dataset.pipeline and default_input_size(cfg) == (800, 1280)


def test_mmdets_own_configs():
    """Their test pipelines have a size, and take another."""
    for name, own, width in (
        ('rtmdet/rtmdet_s_8xb32-300e_coco', 640, 320),
        ('yolox/yolox_s_8xb8-300e_coco', 640, 320),
        ('ssd/ssd300_coco', 300, 320),
        ('dino/dino-4scale_r50_8xb2-12e_coco', 800, 512),
    ):
        cfg = stock_config(name)
        assert own_size(cfg) == own and default_input_size(cfg, 320) == (320, width), name
