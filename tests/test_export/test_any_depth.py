import copy
import json
import os

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from parity import make_lively, matches, noise, predict
from test_tools import fails
from tiny import DETECTORS, build, load_tool, small_images, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.export.any_depth import RUNTIME, any_depth_model, export_any_depth
from adn_mmdet.export.any_depth_runtime import AnyDepthRuntime, paste
from adn_mmdet.export.expressible import require_expressible
from adn_mmdet.files import file_sha256

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

    def run(self, inputs):
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, inputs), strict=True))

    def assert_equal(self, images, code, num_proposals=20):
        """Compare with mmdet, and return the number of detections."""
        given = {'images': images, 'skip': np.array(list(code)), 'num_proposals': np.array(num_proposals)}
        found = self.run({value.name: given[value.name] for value in self.session.get_inputs()})
        number = 0
        for image, expected in enumerate(predict(self.detector, images, code)):
            order = matches(found, image, expected)
            number += len(order)
            assert not any(found[name][image, len(order) :].any() for name in found.keys() - {'num'})
            if 'masks' in found:
                masks = paste(found['masks'][image][order], expected.bboxes.numpy(), *images.shape[1:3], 0.5)
                assert (
                    masks != expected.masks.numpy()
                ).sum() <= 1e-3 * masks.size  # where a pixel is 0.5 but for rounding
        return number


@pytest.fixture(scope='module', params=DETECTORS)
def exported(request):
    return Exported(small_images(tiny_config(request.param)))


def test_every_code_finds_what_mmdet_finds_at_any_batch_and_size(exported):
    assert sum(exported.assert_equal(noise(shape), code) for shape in SHAPES for code in CODES) > 500


def test_each_weight_is_stored_once_and_branches_hold_none(exported):
    onnx.checker.check_model(exported.model, full_check=True)
    assert [(opset.domain, opset.version) for opset in exported.model.opset_import] == [('', 17)]
    held = {name: value for name, value in exported.detector.state_dict().items() if value.is_floating_point()}
    stored = [weight for weight in exported.model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT]
    assert sum(np.prod(weight.dims) for weight in stored) <= 1.01 * sum(map(torch.Tensor.numel, held.values()))
    choices = [node for node in exported.model.graph.node if node.op_type == 'If']
    assert len(choices) == 4 and not any(body.g.initializer for node in choices for body in node.attribute)
    norms = [node for choice in choices for body in choice.attribute for node in body.g.node]
    assert 'BatchNormalization' in {node.op_type for node in norms}


@pytest.mark.parametrize('name', ['gfl', 'fcos', 'retinanet'])
def test_a_head_that_can_be_skipped_is_a_fifth_choice(name):
    cfg = small_images(tiny_config(name, 'adn_tower' if name == 'retinanet' else 'adn'))
    cfg.model.bbox_head.stacked_convs = 3
    if name != 'retinanet':
        cfg.model.bbox_head.norm_cfg = dict(type='GN', num_groups=4)
    exported, codes = Exported(cfg), SkipConfig.all((4, 1))
    assert sum(exported.assert_equal(noise(SHAPES[1]), code) for code in (*codes[:2], *codes[-2:])) > 20
    choices = [node for node in exported.model.graph.node if node.op_type == 'If']
    assert len(choices) == 5 and not any(body.g.initializer for node in choices for body in node.attribute)


def test_number_of_proposals(exported, monkeypatch):
    if not hasattr(exported.detector, 'rpn_head'):
        assert {value.name for value in exported.session.get_inputs()} == {'images', 'skip'}
        return
    images, code, numbers = noise((3, 64, 64, 3), seed=1), SkipConfig.parse('FTFT'), []
    for number in (1, 5, 10_000):
        monkeypatch.setitem(exported.detector.rpn_head.test_cfg, 'max_per_img', number)
        numbers.append(exported.assert_equal(images, code, number))
    assert 0 < numbers[0] < numbers[1] < numbers[2]


def test_openvino_finds_the_same(exported):
    openvino = pytest.importorskip('openvino', reason='openvino is not installed')
    model = openvino.Core().read_model(exported.model.SerializeToString())
    compiled = openvino.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    exported = copy.copy(exported)
    exported.run = lambda inputs: {value.any_name: found for value, found in compiled(inputs).items()}
    for shape, code in zip(SHAPES, CODES[::5]):
        assert exported.assert_equal(noise(shape), code)


def test_images_in_which_nothing_is_found():
    cfg, code = small_images(tiny_config('mask_rcnn')), SkipConfig.parse('TTTT')
    cfg.model.test_cfg.rcnn.score_thr = 1.0
    exported = Exported(cfg, code)
    found = exported.run({'images': noise((2, 64, 48, 3)), 'num_proposals': np.array(20)})
    assert {name: value.shape[:2] for name, value in found.items()} == {'num': (2,)} | dict.fromkeys(
        ('boxes', 'scores', 'labels', 'masks'), (2, 1)
    )
    assert not any(value.any() for value in found.values())
    assert exported.assert_equal(noise((2, 64, 48, 3)), code) == 0


@pytest.mark.parametrize('kind', DENSE)
def test_other_dense_heads(kind):
    code = SkipConfig.parse('TFTT')
    exported = Exported(mmdet_config(kind), code)
    assert 'skip' not in {value.name for value in exported.session.get_inputs()}
    assert sum(exported.assert_equal(noise(shape), code) for shape in SHAPES) > 10


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    cfg = small_images(tiny_config())
    torch.save(build(cfg).state_dict(), folder / 'weights.pth')
    cfg.dump(folder / 'tiny.py')
    return folder


@pytest.fixture(scope='module')
def main():
    return load_tool('export_any_depth').main


RUN = dict(name='a', config='a.py', annotations_sha256=None, classes=['circle'], num_images=1, input_size=[64, 64])


def test_files_of_the_tool(main, saved, capsys):
    sha256 = file_sha256(saved / 'weights.pth')
    rows = [dict(skip=str(code), bbox_mAP=0.5, gmacs=1.0, size=64, proposals=20) for code in CODES]
    rows.append(dict(rows[0], size=32))
    run = dict(RUN, checkpoint_sha256=sha256, size=64, proposals=20)
    (saved / 'sub_nets.json').write_text(json.dumps(dict(schema=2, run=run, rows=rows)))
    out = saved / 'new' / 'tiny.onnx'
    argv = [str(saved / 'tiny.py'), str(saved / 'weights.pth'), str(out), '--sub-nets', str(saved / 'sub_nets.json')]
    assert main(argv) == 0
    assert capsys.readouterr().out.split() == [str(out), str(out.with_name(RUNTIME.name))]
    assert sorted(path.name for path in out.parent.iterdir()) == [RUNTIME.name, 'tiny.onnx']
    assert out.with_name(RUNTIME.name).read_bytes() == RUNTIME.read_bytes()
    runtime = AnyDepthRuntime(out)
    about = {key: value for key, value in runtime.about.items() if key not in ('mean', 'std')}
    assert about == dict(
        schema=1,
        classes=['circle', 'rectangle', 'triangle'],
        num_stages=4,
        num_parts=0,
        config='tiny',
        checkpoint_sha256=sha256,
        resize=dict(scale=[64, 64], keep_ratio=True),
        max_per_img=10,
        num_proposals=20,
        mask_threshold=None,
        rows=rows[:-1],
    )
    assert runtime.about['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert runtime(noise((48, 80, 3)), skip='TTFF').skip == 'TTFF'


CASCADE = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
DCN = dict(type='DCNv2', deform_groups=1)


def soft_nms(cfg):
    cfg.model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5)


def cascade(cfg):
    stock = get_config(CASCADE).model
    cfg.model.roi_head, cfg.model.train_cfg, cfg.model.test_cfg = stock.roi_head, stock.train_cfg, stock.test_cfg


def dcn(cfg):
    cfg.model.backbone.update(dcn=DCN, stage_with_dcn=(False, True, True, True))


def mobilenet(cfg):
    cfg.model.backbone = dict(type='AdaptiveDepthMobileNetV2', widen_factor=0.25, out_indices=(1, 2, 4, 7))
    cfg.model.neck.in_channels = [8, 8, 24, 1280]


def smaller_nms(cfg):
    cfg.model.test_cfg.rpn.nms.min_bbox_size = 3


def max_pool(cfg):
    cfg.model.roi_head.bbox_roi_extractor.roi_layer = dict(type='RoIPool', output_size=7)


def other_boxes(cfg):
    cfg.model.roi_head.bbox_head.bbox_coder.clip_border = False


def classes(cfg):
    cfg.test_dataloader.dataset.metainfo = dict(classes=('circle',))


def pipeline(cfg):
    cfg.test_dataloader.dataset.pipeline.insert(2, dict(type='Pad', size_divisor=32))


REFUSED = {
    soft_nms: 'soft_nms of test_cfg.rcnn.nms cannot be exported: a whole detector is',
    cascade: 'the head CascadeRoIHead cannot be exported',
    dcn: 'ModulatedDeformConv2dPack (backbone.layer2.0.conv2), an operator of mmcv, cannot be exported',
    mobilenet: 'the backbone AdaptiveDepthMobileNetV2 cannot be exported',
    smaller_nms: 'min_bbox_size of test_cfg.rpn.nms cannot be exported',
    max_pool: 'SingleRoIExtractor with RoIPool',
    other_boxes: 'DeltaXYWHBBoxCoder of bbox_head with these settings cannot be exported',
    classes: 'the detector has 3 classes, but 1 are named',
    pipeline: 'the test pipeline has {',
}


@pytest.mark.parametrize('change', REFUSED, ids=lambda change: change.__name__)
def test_what_cannot_be_expressed(main, saved, capsys, change):
    cfg = Config.fromfile(saved / 'tiny.py')
    change(cfg)
    cfg.dump(saved / 'tiny.py')
    before = sorted(saved.rglob('*'))
    fails(main, [str(saved / 'tiny.py'), str(saved / 'weights.pth'), str(saved / 'a.onnx')], capsys, REFUSED[change])
    assert sorted(saved.rglob('*')) == before


def without_skip_norms(path):
    torch.save({key: value for key, value in torch.load(path).items() if '_skip.' not in key}, path)


SPOILT = {
    'no checkpoint that torch.save wrote': lambda path: path.write_text('<html>404</html>'),
    'could run code': lambda path: torch.save({'a': os.system}, path),
    'untrained': without_skip_norms,
}


@pytest.mark.parametrize('message', SPOILT)
def test_weights_that_cannot_be_exported(main, saved, capsys, message):
    SPOILT[message](saved / 'weights.pth')
    fails(main, [str(saved / 'tiny.py'), str(saved / 'weights.pth'), str(saved / 'a.onnx')], capsys, message)
    assert not (saved / 'a.onnx').exists()


def test_places_and_results_that_cannot_be_used(main, saved, capsys, monkeypatch):
    argv = [str(saved / 'tiny.py'), str(saved / 'weights.pth')]
    fails(main, [*argv, str(saved)], capsys, 'is a folder: give the name of a file')
    fails(main, [*argv, str(saved / 'weights.pth' / 'a.onnx')], capsys, 'cannot write to')
    run = dict(RUN, checkpoint_sha256='a' * 64)
    (saved / 'other.json').write_text(json.dumps(dict(schema=1, run=run, rows=[dict(skip='FFFF', gmacs=1.0)])))
    fails(main, [*argv, str(saved / 'a.onnx'), '--sub-nets', str(saved / 'other.json')], capsys, 'other weights')
    monkeypatch.setattr('adn_mmdet.export.any_depth.find_spec', lambda name: None)
    fails(main, [*argv, str(saved / 'a.onnx')], capsys, 'needs the package onnx: pip install onnx')
    assert not (saved / 'a.onnx').exists()


def test_a_full_disk_leaves_what_was_there(saved, monkeypatch):
    (saved / 'a.onnx').write_bytes(b'the last export')
    monkeypatch.setattr('adn_mmdet.export.any_depth.any_depth_model', lambda detector: onnx.ModelProto())
    before = sorted(saved.iterdir())

    def full(file):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('adn_mmdet.files.os.fsync', full)
    with pytest.raises(UserError, match=r'cannot write .*a\.onnx \(No space left on device\): give another place'):
        export_any_depth(Config.fromfile(saved / 'tiny.py'), saved / 'weights.pth', saved / 'a.onnx')
    assert sorted(saved.iterdir()) == before and (saved / 'a.onnx').read_bytes() == b'the last export'
