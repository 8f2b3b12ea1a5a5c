import json
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from artifact import ABOUT, BOXES, SCORES, make_artifact
from mmcv import imrescale
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from PIL import Image

from adn_mmdet import UserError
from adn_mmdet.export import any_depth_runtime
from adn_mmdet.export.any_depth_runtime import (
    AnyDepthRuntime,
    ArtifactError,
    fit,
    paste,
    read_image,
    resize,
    resize_by_numpy,
)
from adn_mmdet.export.artifact import Artifact
from adn_mmdet.export.smaller import make_smaller

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp('artifact') / 'tiny.onnx')


@pytest.fixture(scope='module')
def detect(path):
    return AnyDepthRuntime(path)


def test_letters_of_parts_follow_a_hyphen(tmp_path):
    path = make_artifact(tmp_path / 'parts.onnx', about=dict(num_stages=3, num_parts=1))
    detect = AnyDepthRuntime(path)
    assert (len(detect.codes), detect.codes[:2], detect.codes[-1]) == (16, ['FFF-F', 'FFF-T'], 'TTT-T')
    assert detect.parse('ttft') == detect.parse('TTF-T') == detect.parse([True, True, False, True]) == 'TTF-T'
    found = detect(PICTURE, 'TTF-T')
    assert found.skip == 'TTF-T' and found.scores == pytest.approx(SCORES * 0.9**3, rel=1e-6)
    assert list(detect.calibrate(PICTURE, 1)) == detect.codes
    for code in ('TTT', 'TT-TT', 'TTT--T'):
        with pytest.raises(ArtifactError, match='FFF-F .super-net. or TTT-T .base-net.'):
            detect.parse(code)
    assert Artifact(path).backbone.letter_groups == (3, 1)
    with pytest.raises(UserError, match='ship it in float32, or in int8 with calibration images'):
        make_smaller(path, tmp_path / 'half.onnx')


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_depth_a_call(path, backend):
    pytest.importorskip(backend, reason=f'{backend} is not installed')
    detect = AnyDepthRuntime(path, backend, threads=1)
    assert (detect.backend.name, detect.num_stages, len(detect.codes)) == (f'{backend}-cpu', 4, 16)
    for code in detect.codes:
        found = detect(PICTURE, code.lower())
        assert (found.skip, found.names) == (code, ['triangle', 'circle', 'rectangle']) and found.ms > 0
        assert found.scores == pytest.approx(SCORES * 0.9 ** code.count('T'), rel=1e-6)
        assert found.boxes == pytest.approx(BOXES * [128, 96, 128, 96], abs=1e-4)
        assert found.labels.tolist() == [2, 0, 1]
    assert detect(PICTURE).skip == 'FFFF' and detect(PICTURE, [True, False, False, True]).skip == 'TFFT'
    assert len(detect(PICTURE, proposals=2).boxes) == 2
    assert detect(PICTURE, score_thr=0.5).labels.tolist() == [2, 0]
    assert len(detect(PICTURE, score_thr=2).names) == 0
    raw = detect.run(np.zeros((3, 32, 64, 3), np.uint8), 'TTTT')
    assert raw['boxes'].shape == (3, 3, 4) and raw['num'].tolist() == [3, 3, 3]
    assert raw['boxes'][2] == pytest.approx(BOXES * [64, 32, 64, 32])


def test_masks_lie_on_the_image_as_given(detect):
    masks = detect(PICTURE).masks
    assert masks.shape == (3, 96, 128) and masks.dtype == bool
    assert np.argwhere(masks[0])[[0, -1]].tolist() == [[24, 16], [71, 39]]  # the left half of columns 16 to 63
    assert masks[0].sum() == 48 * 24 and masks[2].sum() == 96 * 64 - 4  # corners lie half outside both ways


def test_a_detector_without_masks(tmp_path):
    assert AnyDepthRuntime(make_artifact(tmp_path / 'boxes.onnx', masks=False))(PICTURE).masks is None


def test_masks_are_pasted_as_mmdet_does():
    boxes = (RNG.random((60, 4)) * 200 - 20).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + 1 + RNG.random((60, 2)).astype(np.float32) * 150
    coarse = torch.from_numpy(RNG.random((60, 1, 5, 5)).astype(np.float32))
    masks = torch.nn.functional.interpolate(coarse, (28, 28), mode='bilinear')
    expected = _do_paste_mask(masks, torch.from_numpy(boxes), 150, 190, skip_empty=False)[0].numpy() >= 0.5
    found = paste(masks[:, 0].numpy(), boxes, 150, 190, 0.5)
    assert expected.any((1, 2)).sum() > 40
    assert (found != expected).sum() <= 5  # pixels within rounding of the threshold
    some = expected.any((1, 2))
    assert ((found & expected)[some].sum((1, 2)) / (found | expected)[some].sum((1, 2))).min() >= 0.99


def test_images_are_resized_as_mmcv_does():
    sizes = [(480, 640), (427, 640), (64, 48), (37, 53), (128, 128), (1, 9), (601, 333)]
    for height, width in sizes:
        image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for scale in ([1333, 800], [64, 64], [333, 500], [128, 64]):
            new = fit(width, height, scale, True)
            expected = imrescale(image, tuple(scale))
            assert expected.shape[1::-1] == new
            assert np.array_equal(resize(image, *new), expected)
            assert np.array_equal(resize_by_numpy(image, *new), expected)
    assert fit(640, 480, [300, 200], False) == (300, 200)


def test_files_of_images(detect, tmp_path, monkeypatch):
    smooth = resize_by_numpy(PICTURE[::16, ::16], 128, 96)
    cv2.imwrite(str(tmp_path / 'a.png'), smooth)
    cv2.imwrite(str(tmp_path / 'a.jpg'), smooth)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth[..., ::-1]).save(tmp_path / 'turned.jpg', exif=exif)
    Image.fromarray(np.dstack([smooth[..., ::-1], smooth[..., 0]])).save(tmp_path / 'alpha.png')
    names = ['a.png', 'a.jpg', 'turned.jpg', 'alpha.png']
    by_opencv = [read_image(tmp_path / name) for name in names]
    monkeypatch.setitem(__import__('sys').modules, 'cv2', None)
    by_pillow = [read_image(str(tmp_path / name)) for name in names]
    assert by_pillow[2].shape == (128, 96, 3)
    for name, a, b in zip(names, by_opencv, by_pillow):
        assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= (3 if name.endswith('jpg') else 0), name
    assert np.array_equal(detect(tmp_path / 'a.png').boxes, detect(smooth).boxes)
    Image.fromarray(smooth[..., 0].astype(np.uint16) * 256).save(tmp_path / 'deep.png')
    with pytest.raises(ArtifactError, match=r'deep.png cannot be read as an image \(its pixels are I;16'):
        detect(tmp_path / 'deep.png')


def test_threads_with_depths_of_their_own_never_mix(detect):
    found = {code: [] for code in ('FFFF', 'TTTT', 'TFTF')}

    def many(code):
        found[code] += [detect(PICTURE, code) for _ in range(20)]

    threads = [threading.Thread(target=many, args=(code,)) for code in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for code, results in found.items():
        assert len(results) == 20 and {one.skip for one in results} == {code}
        assert {float(one.scores[0]) for one in results} == {float(detect(PICTURE, code).scores[0])}


def test_a_budget_by_the_rows_of_the_file(tmp_path):
    rows = [dict(skip=code, bbox_mAP=ap, ms=ms) for code, ap, ms in
            [('FFFF', 0.5, 40), ('TFFF', 0.52, 30), ('TTFF', 0.48, 31), ('TTTT', 0.4, 10)]]  # fmt: skip
    detect = AnyDepthRuntime(make_artifact(tmp_path / 'rows.onnx', about=dict(rows=rows)))
    chosen = {budget: detect(PICTURE, budget_ms=budget).skip for budget in (100, 40, 30, 29.9, 10)}
    assert chosen == {100: 'TFFF', 40: 'TFFF', 30: 'TFFF', 29.9: 'TTTT', 10: 'TTTT'}
    with pytest.raises(ArtifactError, match='no depth runs in 9 ms: the fastest, TTTT, takes 10.0 ms'):
        detect(PICTURE, budget_ms=9)
    for wrong in (0, -1, float('nan'), float('inf'), '5', True):
        with pytest.raises(ArtifactError, match='budget_ms should be a positive number of milliseconds'):
            detect(PICTURE, budget_ms=wrong)
    with pytest.raises(ArtifactError, match='skip=TTTT and budget_ms=5 were both given'):
        detect(PICTURE, 'TTTT', budget_ms=5)


def test_a_budget_by_a_calibration(tmp_path):
    detect = AnyDepthRuntime(make_artifact(tmp_path / 'work.onnx', work=20), threads=1)
    times = detect.calibrate(PICTURE, rounds=5)
    assert set(times) == set(detect.codes)
    assert times['FFFF'] > 1.5 * times['TTTT'] and detect.choose(2 * times['FFFF'], PICTURE) == 'FFFF'
    middle = (times['FFFF'] + times['TTTT']) / 2
    assert 0 < detect(PICTURE, budget_ms=middle).skip.count('T') < 4
    fresh = AnyDepthRuntime(tmp_path / 'work.onnx', threads=1)
    assert fresh(PICTURE, budget_ms=1e6).skip == 'FFFF'  # it calibrates itself


@pytest.mark.parametrize('skip', ['TTT', 'TTXT', '', 'TTTTT', 'TTﬀ', 3, [True], None.__class__])
def test_bad_codes(detect, skip):
    with pytest.raises(ArtifactError, match=r'is not a skip code: .*FFFF \(super-net\)'):
        detect(PICTURE, skip)


def test_bad_images(detect, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff')
    bad = {
        'float32 of shape': PICTURE.astype(np.float32),
        r'uint8 of shape \(96, 128\)': PICTURE[..., 0],
        r'uint8 of shape \(0, 5, 3\)': np.zeros((0, 5, 3), np.uint8),
        'should be a path or an array': 5,
        'there is no image': tmp_path / 'none.jpg',
        'broken.jpg cannot be read as an image': tmp_path / 'broken.jpg',
        'resizes to nothing': np.zeros((1, 900, 3), np.uint8),
    }
    for match, image in bad.items():
        with pytest.raises(ArtifactError, match=match):
            detect(image)
    for images in (PICTURE, PICTURE[None].astype(int), 'x'):
        with pytest.raises(ArtifactError, match='images should be uint8 of shape'):
            detect.run(images)
    with pytest.raises(ArtifactError, match='tiny.onnx fails on images'):
        detect.run(PICTURE[None, :, :, :2])
    for proposals in (0, -1, 1.5, True, 'many'):
        with pytest.raises(ArtifactError, match='proposals should be a whole number'):
            detect(PICTURE, proposals=proposals)


def test_files_that_are_no_artifact(path, tmp_path, monkeypatch):
    def open_(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        return AnyDepthRuntime(tmp_path / name)

    with pytest.raises(ArtifactError, match='there is no file'):
        open_('none.onnx')
    for name, content in dict(cut=path.read_bytes()[:500], foreign=b'hello', empty=b'').items():
        with pytest.raises(
            ArtifactError, match=f'{name}.onnx (cannot be opened, it is cut off|is no any-depth)'
        ) as info:
            open_(f'{name}.onnx', content)
        assert '\n' not in str(info.value)
    model = onnx.load(path)
    del model.metadata_props[:]
    with pytest.raises(ArtifactError, match='foreign.onnx is no any-depth detector: export it with'):
        open_('foreign.onnx', model.SerializeToString())
    onnx.save(onnx.load(path), tmp_path / 'split.onnx', save_as_external_data=True, location='w.bin', size_threshold=0)
    assert open_('split.onnx')(PICTURE).skip == 'FFFF'
    (tmp_path / 'w.bin').unlink()
    with pytest.raises(ArtifactError, match='its weights lie in another file, which is missing'):
        open_('split.onnx')
    with pytest.raises(ArtifactError, match='backend should be one of onnxruntime, openvino'):
        AnyDepthRuntime(path, 'tensorflow')
    with pytest.raises(ArtifactError, match='providers should be of .*but got NoProvider'):
        AnyDepthRuntime(path, providers=['NoProvider'])
    with pytest.raises(ArtifactError, match='threads should be a whole number'):
        AnyDepthRuntime(path, threads=0)
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    with pytest.raises(ArtifactError, match='pip install onnxruntime'):
        AnyDepthRuntime(path)


BAD = {
    'no JSON object': ['{', '[]', '[' * 100_000, '__import__("os").mkdir("hacked")'],
    'schema 2, but 1 is read': [dict(schema=2)],
    'the classes': [dict(classes=[]), dict(classes=[1]), dict(classes='abc')],
    'the num_stages': [dict(num_stages=99), dict(num_stages=True), dict(num_stages='4')],
    'the resize': [dict(resize=[64, 64]), dict(resize=dict(scale=[0, 64], keep_ratio=True))],
    'the mask_threshold': [dict(mask_threshold='0.5'), dict(mask_threshold=float('nan'))],
    'the rows': [dict(rows=[5]), dict(rows=None)],
    'its graph and its metadata do not agree': [dict(num_proposals=None), dict(mask_threshold=None)],
}


@pytest.mark.parametrize('match, about', [(match, about) for match, many in BAD.items() for about in many])
def test_crafted_metadata_are_data(path, elsewhere, match, about):
    model = onnx.load(path)
    text = about if isinstance(about, str) else json.dumps({**ABOUT, **about})
    model.metadata_props[0].value = text
    onnx.save(model, 'crafted.onnx')
    with pytest.raises(ArtifactError, match=match) as info:
        AnyDepthRuntime('crafted.onnx')
    assert '\n' not in str(info.value) and not Path('hacked').exists()


def test_it_is_one_file_that_needs_no_torch(path, tmp_path):
    """In a process whose every import of more than numpy and onnxruntime fails."""
    import subprocess
    import sys

    shutil.copy(any_depth_runtime.__file__, tmp_path)
    code = (
        'import sys\n'
        'for name in ("torch", "mmdet", "mmcv", "mmengine", "cv2", "adn_mmdet", "PIL"): sys.modules[name] = None\n'
        'import numpy as np\n'
        'from any_depth_runtime import AnyDepthRuntime\n'
        f'found = AnyDepthRuntime({str(path)!r})(np.zeros((96, 128, 3), np.uint8), "TTFF")\n'
        'print(found.skip, found.names, found.boxes[0].tolist())'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "TTFF ['triangle', 'circle', 'rectangle'] [16.0, 24.0, 64.0, 72.0]", done.stderr
