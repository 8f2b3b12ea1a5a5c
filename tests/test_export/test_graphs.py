import io

import pytest
import torch
from tiny import build, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.export.graphs import require_graph, to_exported_program, to_onnx
from adn_mmdet.export.sub_net import export_sub_net, plain_detector

SIZES = [(1, 3, 64, 64), (2, 3, 96, 128), (3, 3, 70, 101), (1, 3, 32, 32)]  # one pixel at the last level


def both(cfg, code):
    """A detector at a sub-network, and the plain one of it."""
    detector = build(cfg).eval()
    detector.backbone.set_skip(code)
    return detector, plain_detector(cfg, detector, detector.backbone.skip)[1]


@torch.no_grad()
def assert_close(function, detector, tolerance):
    for number, size in enumerate(SIZES):
        images = torch.randn(size, generator=torch.Generator().manual_seed(number))
        for output, expected in zip(function(images), detector.extract_feat(images), strict=True):
            assert output.shape == expected.shape
            assert (output - expected).abs().max() <= tolerance * expected.abs().max()


def test_onnx_at_any_batch_and_size():
    onnxruntime = pytest.importorskip('onnxruntime')
    detector, plain = both(tiny_config('retinanet'), 'TFTT')
    session = onnxruntime.InferenceSession(to_onnx(plain), providers=['CPUExecutionProvider'])
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == [
        'images',
        *(f'feat{n}' for n in range(5)),
    ]
    assert_close(
        lambda images: map(torch.from_numpy, session.run(None, {'images': images.numpy()})), detector, tolerance=1e-4
    )
    assert not plain.training and not plain.backbone.bn1.training


def test_torch_export_at_any_batch_and_size():
    # Two stages, because torch takes long; as in Faster R-CNN the levels beyond them are max-pooled.
    two_stages = dict(num_stages=2, skip='FF', strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    cfg = tiny_config(**two_stages)
    cfg.model.neck.update(in_channels=[32, 64], num_outs=5)
    detector, plain = both(cfg, 'TF')
    program = torch.export.load(io.BytesIO(to_exported_program(plain)))
    assert_close(program.module(), detector, tolerance=0)


def test_files_of_the_tool(tmp_path, monkeypatch):
    pytest.importorskip('onnx')
    cfg = tiny_config()
    torch.save(build(cfg).state_dict(), tmp_path / 'weights.pth')
    monkeypatch.setattr('adn_mmdet.export.sub_net.to_exported_program', lambda detector: b'program')
    options = dict(fuse=True, onnx=True, torch_export=True)
    files = export_sub_net(cfg, tmp_path / 'weights.pth', 'TTTT', tmp_path / 'out', **options)
    name = 'faster_rcnn_r50_adn_1x_coco_TTTT_fused'
    assert [path.name for path in files] == [f'{name}.pth', 'hubconf.py', f'{name}.onnx', f'{name}.pt2', f'{name}.py']
    assert files[3].read_bytes() == b'program'
    _, fused = plain_detector(cfg, build(cfg), SkipConfig.base_net(4), fuse=True)
    assert files[2].read_bytes() == to_onnx(fused)


def test_what_no_graph_can_express():
    detector = build(tiny_config('retinanet'))
    detector.neck = None
    with pytest.raises(UserError, match='RetinaNet has no neck: leave --onnx and --torch-export out'):
        require_graph(detector)
    dcn = dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True))
    with pytest.raises(UserError, match='ModulatedDeformConv2dPack runs an operator of mmcv'):
        require_graph(build(tiny_config(**dcn)))


def test_onnx_is_not_installed(monkeypatch):
    monkeypatch.setattr('adn_mmdet.export.graphs.find_spec', lambda name: None)
    with pytest.raises(UserError, match='--onnx needs the package onnx: pip install onnx'):
        to_onnx(build(tiny_config()))
