import numpy as np
import pytest
from mmengine.hub import get_config
from parity import make_lively, matches, noise, predict
from tiny import DETECTORS, build, small_images, tiny_config

from adn_mmdet import SkipConfig
from adn_mmdet.export.any_depth import any_depth_model
from adn_mmdet.export.any_depth_runtime import paste
from adn_mmdet.export.expressible import require_expressible

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
CODES = SkipConfig.all(4)
SHAPES = [(1, 64, 64, 3), (3, 48, 80, 3), (1, 70, 53, 3)]


def mmdet_config(kind):
    """A stock dense head on the tiny backbone and neck."""
    cfg, stock = tiny_config('retinanet'), get_config(DENSE[kind]).model
    for key in ('type', 'bbox_head', 'test_cfg', 'data_preprocessor'):
        cfg.model[key] = stock[key]
    cfg.model.neck = dict(stock.neck, in_channels=[32, 64, 128, 256], out_channels=16)
    norm_cfg = dict(type='GN', num_groups=4)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3, norm_cfg=norm_cfg)
    cfg.model.train_cfg = stock.get('train_cfg')
    return cfg


DENSE = {
    'fcos': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'atss': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'gfl': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
}


class Exported:
    """A tiny detector and its model."""

    def __init__(self, cfg, skip=None):
        self.detector = make_lively(build(cfg))
        require_expressible(self.detector)
        self.model = any_depth_model(self.detector, skip)
        content = self.model.SerializeToString()
        self.session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])

    def __call__(self, images, code, num_proposals=20):
        given = {'images': images, 'skip': np.array(list(code)), 'num_proposals': np.array(num_proposals)}
        names = [value.name for value in self.session.get_outputs()]
        inputs = {value.name: given[value.name] for value in self.session.get_inputs()}
        return dict(zip(names, self.session.run(None, inputs), strict=True))

    def assert_equal(self, images, code):
        """Compare with mmdet, and return the number of detections."""
        found, number = self(images, code), 0
        for image, expected in enumerate(predict(self.detector, images, code)):
            order = matches(found, image, expected)
            number += len(order)
            assert not any(found[name][image, len(order) :].any() for name in found.keys() - {'num'})
            if 'masks' in found:
                masks = paste(found['masks'][image][order], expected.bboxes.numpy(), *images.shape[1:3], 0.5)
                assert (masks != expected.masks.numpy()).mean() < 1e-3  # where a pixel is 0.5 but for rounding
        return number


@pytest.fixture(scope='module', params=DETECTORS)
def exported(request):
    return Exported(small_images(tiny_config(request.param)))


def test_every_code_finds_what_mmdet_finds_at_any_batch_and_size(exported):
    assert sum(exported.assert_equal(noise(shape), code) for shape in SHAPES for code in CODES) > 500


@pytest.mark.parametrize('kind', DENSE)
def test_other_dense_heads(kind):
    code = SkipConfig.parse('TFTT')
    exported = Exported(mmdet_config(kind), code)
    assert 'skip' not in {value.name for value in exported.session.get_inputs()}
    assert sum(exported.assert_equal(noise(shape), code) for shape in SHAPES) > 10
