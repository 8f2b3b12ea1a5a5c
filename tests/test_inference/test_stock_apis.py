"""mmdet's own init_detector and DetInferencer on every config of the paper's detectors, at the skip stored in it."""

import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from tiny import DETECTORS, ROOT, build, narrow, small_images

from adn_mmdet.backbones import AdaptiveDepthBackbone

CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*_r50*.py') if path.name.startswith(DETECTORS))


def test_stock_apis_run_the_stored_skip(shapes, tmp_path):
    """Configs of one and the same model (they differ in training or first weights) are run once."""
    models = {}
    for path in CONFIGS:
        cfg = Config.fromfile(path)
        if 'parts' not in cfg.model:  # tests/test_parts runs those
            models.setdefault(str(small_images(narrow(cfg)).model), cfg)
    assert len(CONFIGS) >= 18 and len(models) >= 9
    image = str(next((shapes / 'val').iterdir()))
    for cfg in models.values():
        check(cfg, image, str(tmp_path / 'weights.pth'))


def check(cfg, image, path):
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
        assert expected != super_net, cfg.filename
    assert len(expected) > 0
    (found,) = DetInferencer(cfg, path, 'cpu', show_progress=False)(image)['predictions']
    assert found['scores'] == expected, cfg.filename
    model = init_detector(cfg, path, device='cpu')
    assert inference_detector(model, image).pred_instances.scores.tolist() == expected, cfg.filename
