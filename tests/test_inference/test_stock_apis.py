"""mmdet's own init_detector and DetInferencer on every config, at the skip stored in it."""

import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from tiny import ROOT, build, narrow, small_images

from adn_mmdet.backbones import AdaptiveDepthBackbone

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*_r50*.py'))


def test_all_configs_are_there():
    assert len(CONFIGS) >= 18


@pytest.mark.parametrize('name', CONFIGS)
def test_stock_apis_run_the_stored_skip(name, shapes, tmp_path):
    cfg = small_images(narrow(Config.fromfile(ROOT / name)))
    image, path = str(next((shapes / 'val').iterdir())), str(tmp_path / 'weights.pth')
    detector = build(cfg).eval()
    detector.cfg = cfg
    meta = dict(dataset_meta=dict(classes=('circle', 'rectangle', 'triangle')))
    torch.save(dict(state_dict=detector.state_dict(), meta=meta), path)
    expected = inference_detector(detector, image).pred_instances.scores.tolist()
    if isinstance(detector.backbone, AdaptiveDepthBackbone):
        cfg.model.backbone.skip = 'TTFT'
        super_net = expected
        with detector.backbone.using_skip('TTFT'):
            expected = inference_detector(detector, image).pred_instances.scores.tolist()
        assert expected != super_net
    assert len(expected) > 0
    (found,) = DetInferencer(cfg, path, 'cpu', show_progress=False)(image)['predictions']
    assert found['scores'] == expected
    model = init_detector(cfg, path, device='cpu')
    assert inference_detector(model, image).pred_instances.scores.tolist() == expected
