import pytest
import torch
from tiny import batch, build, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.ops.precision import autocast, require_amp

CPU = torch.device('cpu')


def test_bfloat16_on_the_cpu_at_every_code():
    detector = build(tiny_config('retinanet')).eval()
    data = batch(detector)
    dtypes = []
    detector.backbone.layer4.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))

    def scores():
        predictions = detector(**data, mode='predict')
        return torch.cat([prediction.pred_instances.scores[:5] for prediction in predictions])

    with torch.no_grad():
        expected = {}
        for code in SkipConfig.all(4):
            with detector.backbone.using_skip(code):
                expected[code] = scores()
        require_amp(detector, CPU)
        require_amp(detector, CPU)
        assert len(detector.bbox_head._forward_hooks) == 1
        for code in expected:
            with detector.backbone.using_skip(code):
                assert torch.equal(scores(), expected[code])  # float32 is what it was
                with autocast(CPU, True):
                    found = scores()
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected[code], rtol=0.03, atol=0.01)
    assert dtypes.count(torch.bfloat16) == 16 and dtypes.count(torch.float32) == 32


def test_region_proposals_have_none():
    detector = build(tiny_config())
    with pytest.raises(UserError, match="FasterRCNN cannot run in mixed precision on the CPU, where mmcv's RoIAlign"):
        require_amp(detector, CPU)
    require_amp(detector, torch.device('cuda'))


def test_float16_on_a_gpu():
    assert autocast(torch.device('cuda'), False).fast_dtype == torch.float16
