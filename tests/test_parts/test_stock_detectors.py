"""Which of mmdet's own detectors have a head that can be skipped by a config diff of a few lines; and which not."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from tiny import TINY_BACKBONE, batch, build, stock_config

from adn_mmdet import UserError
from adn_mmdet.distillation.self_distillation import SelfDistillation

PART = dict(type='SkippableTower', of='bbox_head', keep=1)
STOCK = {  # beside those of configs/: test_towers.py and test_roi_heads.py
    'AutoAssign': 'autoassign/autoassign_r50-caffe_fpn_1x_coco',
    'DDOD': 'ddod/ddod_r50_fpn_1x_coco',
    'FSAF': 'fsaf/fsaf_r50_fpn_1x_coco',
    'FreeAnchor': 'free_anchor/freeanchor_r50_fpn_1x_coco',
    'PAA': 'paa/paa_r50_fpn_1x_coco',
    'RepPoints': 'reppoints/reppoints-moment_r50_fpn_1x_coco',
    'SABL RetinaNet': 'sabl/sabl-retinanet_r50_fpn_1x_coco',
    'VFNet': 'vfnet/vfnet_r50_fpn_1x_coco',
}
IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def stock_model(path, convs=2):
    """The config of a stock detector with narrow layers, and with towers of so many convolutions."""
    model = stock_config(path).model
    model.backbone.update({key: value for key, value in TINY_BACKBONE.items() if key != 'init_cfg'}, init_cfg=None)
    model.neck.update(in_channels=[32, 64, 128, 256], out_channels=32)
    head = model.bbox_head
    head.update(in_channels=32, feat_channels=32, num_classes=3, stacked_convs=convs)
    if head.type == 'RepPointsHead':
        head.point_feat_channels = 32
    return model


def any_depth(path):
    cfg = stock_config(path)
    cfg.model = stock_model(path)
    cfg.model.update(type='AnyDepthDetector', of=cfg.model.type, parts=[PART])
    cfg.model.backbone.update(type='AdaptiveDepthResNet', skip='FFFF-F')
    return build(cfg)


def predictions(detector):
    feats = [torch.randn(1, 32, size, size, generator=torch.Generator().manual_seed(size)) for size in (16, 8, 6, 4, 3)]
    with torch.no_grad():
        return [tensor for kind in detector.bbox_head(tuple(feats)) for level in kind for tensor in _flat(level)]


def _flat(value):
    return [inner for each in value for inner in _flat(each)] if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize('path', STOCK.values(), ids=STOCK)
def test_train_step_codes_and_names(path):
    detector = any_depth(path).eval()
    own = detector.state_dict()
    for code, convs in (('FFFF-F', 2), ('TFFF-T', 1)):
        stock = MODELS.build(stock_model(path, convs)).eval()
        cut = ('bbox_head.cls_convs.1.', 'bbox_head.reg_convs.1.') if convs == 1 else ()
        names = {key for key in own if '_skip.' not in key and not key.startswith(cut)}
        assert stock.state_dict().keys() == names
        used = {key: own.get(key.replace('.gn.', '.gn_skip.'), own[key]) if convs == 1 else own[key] for key in names}
        stock.load_state_dict(used)
        with detector.backbone.using_skip(code):
            found, expected = predictions(detector), predictions(stock)
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    SelfDistillation(detector.train()).attach()
    detector.parse_losses(detector(**copy.deepcopy(batch(detector)), mode='loss'))[0].backward()
    trained = ('backbone', 'bbox_head.cls_convs', 'bbox_head.reg_convs')
    parameters = [p for name, p in detector.named_parameters() if name.startswith(trained) and p.requires_grad]
    assert all(parameter.grad is not None for parameter in parameters)


def test_tood_uses_the_output_of_each_convolution():
    cfg = stock_config('tood/tood_r50_fpn_1x_coco')
    cfg.model.update(type='AnyDepthDetector', of='TOOD', parts=[PART])
    cfg.model.backbone.update(TINY_BACKBONE, type='AdaptiveDepthResNet')
    with pytest.raises(UserError, match='SkippableTower of bbox_head: TOODHead has no lists of convolutions to skip'):
        build(cfg)
