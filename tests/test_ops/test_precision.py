import pytest
import torch
from tiny import batch, build, tiny_config

from adn_mmdet import SkipConfig
from adn_mmdet.ops.precision import autocast, keep_boxes_exact

CPU = torch.device('cpu')


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'mask_rcnn'])
def test_bfloat16_on_the_cpu_at_every_code(name):
    cfg = tiny_config(name)
    if 'rcnn' in cfg.model.test_cfg:
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    detector = build(cfg).eval()
    data = batch(detector)
    dtypes = []
    detector.backbone.layer4.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))

    def found():
        instances = [prediction.pred_instances for prediction in detector(**data, mode='predict')]
        assert all(len(one.bboxes) >= 5 and one.bboxes.dtype == torch.float32 for one in instances)
        assert name != 'mask_rcnn' or all(one.masks.shape == (len(one), 64, 64) for one in instances)
        return torch.cat([one.scores[:5] for one in instances])

    with torch.no_grad():
        expected = {}
        for code in SkipConfig.all(4):
            with detector.backbone.using_skip(code):
                expected[code] = found()
        for _ in range(2):
            keep_boxes_exact(detector, CPU)
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in detector.modules()]
        assert max(hooks) == 1
        for code in expected:
            with detector.backbone.using_skip(code):
                assert torch.equal(found(), expected[code])  # float32 is what it was
                with autocast(CPU, True):
                    scores = found()
            assert scores.dtype == torch.float32
            torch.testing.assert_close(scores, expected[code], rtol=0.03, atol=0.01)
    assert dtypes.count(torch.bfloat16) == 16 and dtypes.count(torch.float32) == 32


def test_boxes_are_not_rounded_to_the_features():
    detector = build(tiny_config()).eval()
    extractor = detector.roi_head.bbox_roi_extractor
    features = [torch.randn(1, 16, 32 >> level, 344 >> level).bfloat16() for level in range(4)]
    boxes = torch.tensor([[0.0, 1001.0, 11.0, 1021.0, 31.0]])  # 1001 in bfloat16 is 1000
    expected = extractor([level.float() for level in features], boxes)
    assert not torch.equal(extractor(features, boxes).float(), expected)
    keep_boxes_exact(detector, torch.device('cuda'))
    assert extractor(features, boxes).dtype == torch.bfloat16  # a GPU runs in float16, as in stock mmdet
    keep_boxes_exact(detector, CPU)
    assert torch.equal(extractor(features, boxes), expected)


def test_float16_on_a_gpu():
    assert autocast(torch.device('cuda'), False).fast_dtype == torch.float16
