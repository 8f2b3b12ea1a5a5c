"""Numbers of proposals that share RPN and RoI heads detect what each detects by itself."""

import copy

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from tiny import build, tiny_config

from adn_mmdet import UserError, using_point
from adn_mmdet.evaluation.loops import preprocessed_once

NUMBERS = [40, None, 10, 3]


def detector_of(kind, **rcnn):
    cfg = cascade() if kind == 'cascade_rcnn' else tiny_config(kind)
    if 'roi_head' in cfg.model:
        cfg.model.test_cfg.rpn.max_per_img = 20
    cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).update(dict(score_thr=0.0, max_per_img=8) | rcnn)
    return build(cfg).eval()


def cascade():
    cfg = get_config('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py')
    backbone, neck, rpn, roi = (cfg.model[key] for key in ('backbone', 'neck', 'rpn_head', 'roi_head'))
    backbone.update(type='AdaptiveDepthResNet', base_channels=8, init_cfg=None)
    neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
    rpn.update(in_channels=16, feat_channels=16)
    roi.bbox_roi_extractor.out_channels = 16
    for head in roi.bbox_head:
        head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    return cfg


def batch(images=2):
    return demo_mm_inputs(images, [[3, 64, 64]] * images, num_classes=3)


def apart(detector, data, number):
    with using_point(detector, f'/{number}' if number else 'FFFF'), torch.no_grad():
        return detector.test_step(copy.deepcopy(data))


def together(detector, data, numbers=NUMBERS):
    with torch.no_grad(), preprocessed_once(detector, copy.deepcopy(data)) as predict:
        return predict(numbers)


def assert_equal(one, other):
    assert len(one) == len(other)
    for image, same in zip(one, other):
        image, same = image.pred_instances, same.pred_instances
        assert set(image.keys()) == set(same.keys())
        for name, values in image.items():
            torch.testing.assert_close(values, same[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['faster_rcnn', 'mask_rcnn', 'cascade_rcnn'])
def test_detections_are_those_of_separate_runs(kind):
    detector, data = detector_of(kind), batch()
    found = together(detector, data)
    for number, samples in zip(NUMBERS, found, strict=True):
        assert_equal(apart(detector, data, number), samples)
    scores = [tuple(torch.cat([image.pred_instances.scores for image in samples]).tolist()) for samples in found]
    assert len(set(scores)) == len(NUMBERS)  # every number has its own


@pytest.mark.parametrize('kind', ['faster_rcnn', 'mask_rcnn'])
def test_rpn_and_roi_heads_run_once(kind):
    detector, data, runs = detector_of(kind), batch(), []
    parts = [detector.backbone, detector.rpn_head, detector.roi_head.bbox_head]
    for part in [*parts, *([detector.roi_head.mask_head] if kind == 'mask_rcnn' else [])]:
        part.register_forward_hook(lambda part, args, output: runs.append((type(part).__name__, len(args[0]))))
    together(detector, data)
    names = [name for name, _ in runs]
    assert len(names) == len(set(names)) and dict(runs)['Shared2FCBBoxHead'] == 2 * 40
    if kind == 'mask_rcnn':  # boxes that several numbers lead to have their mask once
        assert dict(runs)['FCNMaskHead'] < 2 * 8 * len(NUMBERS)


@pytest.mark.parametrize('kind', ['faster_rcnn', 'mask_rcnn'])
def test_images_without_detections(kind):
    detector, data = detector_of(kind, score_thr=1.1), batch()
    for number, samples in zip(NUMBERS, together(detector, data)):
        assert_equal(apart(detector, data, number), samples)
        assert not any(len(image.pred_instances) for image in samples)


def test_an_image_without_a_proposal(monkeypatch):
    detector, data = detector_of('mask_rcnn'), batch()
    predict = type(detector.rpn_head).predict

    def none_on_the_first(self, *args, **kwargs):
        first, second = predict(self, *args, **kwargs)
        return [first[:0], second]

    monkeypatch.setattr(type(detector.rpn_head), 'predict', none_on_the_first)
    for number, (first, second) in zip(NUMBERS, together(detector, data)):
        assert not len(first.pred_instances) and len(second.pred_instances)
        assert_equal(apart(detector, data, number), [first, second])


def test_a_detector_without_proposals_is_refused():
    with pytest.raises(UserError, match='RetinaNet has no number of proposals to choose'):
        together(detector_of('retinanet'), batch())


def test_a_net_that_has_no_depth_to_choose():
    cfg, data = tiny_config(kind='base'), batch(1)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=8)
    detector = build(cfg).eval()
    with torch.no_grad():
        own = detector.test_step(copy.deepcopy(data))
    assert_equal(own, together(detector, data, [None])[0])
