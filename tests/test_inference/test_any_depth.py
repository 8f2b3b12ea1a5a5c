import copy
import os
import shutil
import threading
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from tiny import ROOT, build, small_images, tiny_config

from adn_mmdet import SkipConfig, UserError, set_point, set_skip, using_point
from adn_mmdet.inference import AnyDepthInferencer, strict
from adn_mmdet.inference.video import Video

CODES = [str(code) for code in SkipConfig.all(4)]


@pytest.fixture(scope='module')
def image(shapes):
    return str(sorted((shapes / 'val').iterdir())[0])


def predict(inferencer, inputs, **kwargs):
    """Predictions without the time that they took."""
    found = []
    inferencer(inputs, **kwargs, on_prediction=found.append)
    return [{name: value for name, value in one.items() if name != 'ms'} for one in found]


def test_predictions_are_those_of_the_depth_in_place(inferencer, tiny_cfg, checkpoint, image):
    detector = init_detector(tiny_cfg, str(checkpoint), device='cpu')
    seen = set()
    for code in ('FFFF', 'TTFF', 'TTTT'):
        set_skip(detector, code)
        expected = inference_detector(detector, image).pred_instances
        (found,) = inferencer(image, skip=code.lower(), return_datasamples=True)['predictions']
        assert (found.skip, len(expected) > 0) == (code, True) and found.ms > 0
        for name in ('bboxes', 'scores', 'labels', 'masks'):
            assert torch.equal(found.pred_instances[name], expected[name])
        seen.add(float(expected.scores[0]))
    assert len(seen) == 3


def test_without_a_skip_it_is_mmdets_inferencer(inferencer, tiny_cfg, checkpoint, image):
    stock = DetInferencer(tiny_cfg, str(checkpoint), 'cpu', show_progress=False)
    for code in ('FFFF', 'TFTF'):  # the stored one
        set_skip(inferencer.model, code)
        set_skip(stock.model, code)
        (expected,) = stock(image)['predictions']
        assert predict(inferencer, image) == [{**expected, 'skip': code, 'point': code}]
        with inferencer.backbone.using_skip('TTTT'):
            assert predict(inferencer, image) == predict(inferencer, image, skip='TTTT')


def at_point(tiny_cfg, checkpoint, image, size, proposals, code):
    """What mmdet finds where the config itself says the size and the number of proposals."""
    cfg = copy.deepcopy(tiny_cfg)
    cfg.model.test_cfg.rpn.max_per_img, cfg.model.backbone.skip = proposals, code
    cfg.test_dataloader.dataset.pipeline[1].scale = (size, size)
    return DetInferencer(cfg, str(checkpoint), 'cpu', show_progress=False)(image)['predictions'][0]


def test_points_are_what_a_config_that_says_so_finds(inferencer, tiny_cfg, checkpoint, image):
    """To the bit; by the argument, inside using_point, and stored."""
    expected = at_point(tiny_cfg, checkpoint, image, 96, 5, 'TTFF')
    expected = [{**expected, 'skip': 'TTFF', 'point': 'TTFF@96/5'}]
    assert len(expected[0]['scores']) > 0
    own = predict(inferencer, image)
    assert predict(inferencer, image, point='TTFF@96/5') == expected != own
    with using_point(inferencer.model, 'TTFF@96/5'):
        assert predict(inferencer, image) == expected
        (at_depth,) = predict(inferencer, image, skip='FFFF')
        assert at_depth['point'] == 'FFFF@96/5'
        assert predict(inferencer, image, point='FFFF') == own  # what is left out is the config's own
    assert predict(inferencer, image) == own
    set_point(inferencer.model, 'TTFF@96/5')
    assert predict(inferencer, image) == expected
    assert str(inferencer.choose(point='@64')) == 'TTFF@64'


def test_threads_detect_at_their_own_points(inferencer, image):
    points = ['FFFF', 'FFFF@96', 'TTTT@32/5', 'FFFF/5']
    expected, found = {point: predict(inferencer, image, point=point) for point in points}, {}

    def run(point):
        found[point] = [predict(inferencer, image, point=point) for _ in range(2)]

    threads = [threading.Thread(target=run, args=(point,)) for point in points]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {point: [one] * 2 for point, one in expected.items()}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(point='TTFF@9'), 'size should be the short side'),
        (dict(point='TTFF/0'), 'proposals should be the number'),
        (dict(point='TTF'), "'TTF' is not a skip code"),
        (dict(point=''), "'' is not an operating point"),
        (dict(point='TTFF', skip='TTFF'), 'skip=TTFF and point=TTFF were both given: give one of them'),
        (dict(point='TTFF', budget_ms=5), 'point=TTFF and budget_ms=5 were both given: give one of them'),
    ],
)
def test_points_that_are_none(inferencer, image, arguments, message):
    with pytest.raises(UserError, match=message):
        inferencer(image, **arguments)


def test_every_kind_of_input(inferencer, shapes, tmp_path):
    paths = sorted((shapes / 'val').iterdir())[:3]
    for path in paths:
        (tmp_path / path.with_suffix('.PNG').name).write_bytes(path.read_bytes())
    (tmp_path / 'notes.txt').write_text('no image')
    expected = predict(inferencer, [str(path) for path in paths], skip='TTFF')
    assert expected == [predict(inferencer, path, skip='TTFF')[0] for path in paths]
    assert predict(inferencer, tmp_path, skip='TTFF') == expected
    assert predict(inferencer, [cv2.imread(str(path)) for path in paths], skip='TTFF') == expected
    of_two = predict(inferencer, paths, batch_size=2, skip='TTFF')
    assert [one['labels'] for one in of_two] == [one['labels'] for one in expected]


def test_a_video_becomes_an_annotated_video(inferencer, video, tmp_path):
    frames = list(mmcv.VideoReader(video))
    out = tmp_path / 'out'
    found = predict(inferencer, video, skip='TTFT', batch_size=3, out_dir=out, pred_score_thr=2.0)
    assert found == predict(inferencer, frames, skip='TTFT', batch_size=3) and len(found) == 4
    assert [path.name for path in (out / 'vis').iterdir()] == ['drive.mp4']
    written = mmcv.VideoReader(str(out / 'vis' / 'drive.mp4'))
    assert (len(written), written.fps, written.resolution) == (4, 8.0, (64, 64))
    for given, got in zip(frames, written):  # beside the label, the same colours but for the codec
        assert np.abs(given[32:].astype(int) - got[32:]).mean() < 12


def test_predictions_of_a_video_are_not_kept(inferencer, video, tmp_path):
    """They are handed on in order, one batch is held at a time."""
    alive, most, order = [], [], []

    def look(prediction):
        alive.append(weakref.ref(prediction))
        most.append(sum(other() is not None for other in alive))
        order.append(prediction.pred_instances.scores.tolist())

    long = Video(video)
    results = inferencer(long, batch_size=1, skip='TTTT', return_datasamples=True, on_prediction=look)
    assert results == {'predictions': [], 'visualization': []} and len(most) == 4
    assert max(most) <= 2  # this one, and that of the batch before
    assert order == [one['scores'] for one in predict(inferencer, list(mmcv.VideoReader(video)), skip='TTTT')]
    written = inferencer(video, skip='TTTT', out_dir=tmp_path / 'out', pred_score_thr=2.0)
    assert written['predictions'] == [] and (tmp_path / 'out' / 'vis' / 'drive.mp4').exists()
    with pytest.raises(UserError, match='predictions of a video are not kept: give on_prediction=FUNCTION, or out_dir'):
        inferencer(video, skip='TTTT')


def test_predictions_of_images_are_kept_unless_they_are_handed_on(inferencer, shapes):
    kept = []
    assert len(inferencer(shapes / 'val', skip='TTTT')['predictions']) == 6
    assert inferencer(shapes / 'val', skip='TTTT', on_prediction=kept.append)['predictions'] == [] and len(kept) == 6


def test_a_video_that_is_cut_off_is_a_warning(inferencer, video):
    cut = Video(video)
    cut._frame_cnt = 9
    with pytest.warns(UserWarning, match='4 of 9 frames could be read'):
        assert len(predict(inferencer, cut, batch_size=4)) == 4


def test_a_video_that_fails_leaves_nothing(inferencer, video, tmp_path, monkeypatch):
    forward, calls = inferencer.forward, []

    def fails_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError('out of memory')
        return forward(*args)

    monkeypatch.setattr(inferencer, 'forward', fails_at_the_third)
    with pytest.raises(RuntimeError, match='out of memory'):
        inferencer(video, skip='TTTT', out_dir=tmp_path / 'out', pred_score_thr=2.0)
    assert not list((tmp_path / 'out' / 'vis').iterdir())
    assert str(inferencer.backbone.resolve_skip()) == 'FFFF'


def test_pictures_have_the_right_colours_and_a_label(inferencer, image, tmp_path):
    array = cv2.imread(image)
    kwargs = dict(skip='TTFF', pred_score_thr=2.0, return_vis=True, out_dir=tmp_path)
    pictures = [inferencer(one, **kwargs)['visualization'][0] for one in (image, array)]
    for picture in pictures:  # RGB, nothing drawn but the label
        assert np.array_equal(picture[32:], array[32:, :, ::-1])
        assert not np.array_equal(picture[:12], array[:12, :, ::-1])
    names = [image.rpartition('/')[2], '00000001.jpg']  # the second picture of this inferencer
    assert sorted(path.name for path in (tmp_path / 'vis').iterdir()) == sorted(names)
    assert np.array_equal(cv2.imread(str(tmp_path / 'vis' / names[0]))[..., ::-1], pictures[0])
    assert inferencer(array, no_save_pred=False, no_save_vis=True, out_dir=tmp_path)['visualization'] == []
    assert (tmp_path / 'preds' / '0.json').exists()


def test_no_picture_overwrites_another(inferencer, image, tmp_path):
    other = shutil.copy(image, tmp_path)
    with pytest.raises(UserError, match=r'would both be drawn to \d+\.png: detect on them one by one'):
        inferencer([image, other], out_dir=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_threads_with_their_own_skips_never_mix(inferencer, shapes):
    paths = [str(path) for path in sorted((shapes / 'val').iterdir())[:2]]
    codes = ('FFFF', 'TTTT')
    expected = {code: predict(inferencer, paths, skip=code) for code in codes}
    assert expected['FFFF'] != expected['TTTT']
    found = {code: [] for code in codes}

    def many(code):
        for _ in range(6):
            found[code].append(predict(inferencer, paths, skip=code))

    threads = [threading.Thread(target=many, args=(code,)) for code in codes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for code in codes:
        assert found[code] == [expected[code]] * 6
    assert str(inferencer.backbone.resolve_skip()) == 'FFFF'


@pytest.fixture(scope='module')
def retinanet(tmp_path_factory):
    """Config and weights of a detector without RoIAlign, which has no bfloat16 on the CPU."""
    cfg = small_images(tiny_config('retinanet'))
    path = tmp_path_factory.mktemp('retinanet') / 'tiny.pth'
    torch.save(build(cfg).state_dict(), path)
    return cfg, path


@pytest.mark.parametrize('option', ['amp', 'channels_last'])
def test_half_precision_and_channels_last_at_every_code(retinanet, image, option):
    plain, other = (AnyDepthInferencer(*retinanet, 'cpu', show_progress=False, **{name: True} if name else {})
                    for name in (None, option))  # fmt: skip
    different = 0
    for code in CODES:
        a, b = (one(image, skip=code)['predictions'][0] for one in (plain, other))
        assert b['skip'] == code and len(a['scores']) > 0
        assert b['scores'][0] == pytest.approx(a['scores'][0], rel=2e-2 if option == 'amp' else 1e-5)
        different += a['scores'][0] != b['scores'][0]
    assert option == 'channels_last' or different > 10  # it really was another precision


@pytest.mark.skipif(not torch.cuda.is_available(), reason='float16 needs a GPU')
def test_half_precision_on_a_gpu(tiny_cfg, checkpoint, image):
    plain, half = (AnyDepthInferencer(tiny_cfg, checkpoint, 'cuda', amp=amp, show_progress=False) for amp in (0, 1))
    for code in CODES:
        a, b = (one(image, skip=code)['predictions'][0]['scores'][0] for one in (plain, half))
        assert b == pytest.approx(a, rel=2e-2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_backbone_in_half_precision(dtype):
    backbone = build(tiny_config()).backbone.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = {code: backbone(images, code) for code in CODES}
        backbone.to(dtype)
        for code in CODES:
            for got, wanted in zip(backbone(images.to(dtype), code), expected[code]):
                assert got.dtype == dtype and got.isfinite().all()
                assert (got.float() - wanted).norm() < 0.05 * wanted.norm()


def test_a_compiled_model_is_that_of_compile_stages(retinanet, monkeypatch):
    compiled = []
    monkeypatch.setattr(strict, 'compile_stages', compiled.append)  # which has tests of its own
    inferencer = AnyDepthInferencer(*retinanet, 'cpu', compiled=True)
    assert compiled == [inferencer.model]


def test_class_names_of_bare_weights_are_the_configs(retinanet):
    assert AnyDepthInferencer(*retinanet, 'cpu').model.dataset_meta['classes'] == ('circle', 'rectangle', 'triangle')


def test_a_net_without_depths(tmp_path, image):
    cfg = small_images(tiny_config('retinanet', 'base'))
    torch.save(build(cfg).state_dict(), tmp_path / 'base.pth')
    inferencer = AnyDepthInferencer(cfg, tmp_path / 'base.pth', 'cpu', show_progress=False)
    (found,) = inferencer(image, out_dir=tmp_path, pred_score_thr=2.0)['predictions']
    assert found['skip'] is None and found['ms'] > 0
    for wrong in (dict(skip='TTTT'), dict(budget_ms=10)):
        with pytest.raises(UserError, match='ShallowResNet has no depth to choose: leave skip and budget_ms out'):
            inferencer(image, **wrong)
    with pytest.raises(UserError, match='should have one adaptive-depth backbone'):
        inferencer.calibrate()


def test_untrained_depths(tiny_cfg, checkpoint, image, tmp_path):
    weights = torch.load(checkpoint)['state_dict']
    path = tmp_path / 'plain.pth'
    torch.save({key: value for key, value in weights.items() if '_skip' not in key}, path)
    inferencer = AnyDepthInferencer(tiny_cfg, path, 'cpu', show_progress=False)
    assert predict(inferencer, image)[0]['skip'] == 'FFFF'
    for arguments in (dict(skip='TTTT'), dict(budget_ms=1000)):
        with pytest.raises(UserError, match='so that skipped depths are untrained: run FFFF, or allow them'):
            inferencer(image, **arguments)
    inferencer.allow_untrained = True
    assert predict(inferencer, image, skip='TTTT')[0]['skip'] == 'TTTT'


def test_weights_that_do_not_fit(tiny_cfg, checkpoint, tmp_path):
    with pytest.raises(UserError, match='there are no weights to run: give weights=CHECKPOINT'):
        AnyDepthInferencer(tiny_cfg, device='cpu')
    with pytest.raises(UserError, match='there is no checkpoint none.pth'):
        AnyDepthInferencer(tiny_cfg, 'none.pth', 'cpu')
    weights = torch.load(checkpoint)['state_dict']
    torch.save({**weights, 'backbone.more': torch.zeros(1)}, tmp_path / 'more.pth')
    with pytest.raises(UserError, match=r'1 unexpected \(backbone.more\)'):
        AnyDepthInferencer(tiny_cfg, tmp_path / 'more.pth', 'cpu')
    weights['neck.lateral_convs.0.conv.bias'][0] = float('nan')
    torch.save(weights, tmp_path / 'nan.pth')
    with pytest.raises(UserError, match='neck.lateral_convs.0.conv.bias holds NaN'):
        AnyDepthInferencer(tiny_cfg, tmp_path / 'nan.pth', 'cpu')


@pytest.fixture
def server(checkpoint, tmp_path, monkeypatch):
    """The address of a folder with the weights; torch's cache is this test's."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    shutil.copy(checkpoint, tmp_path / 'tiny.pth')
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_weights_from_the_web_are_loaded_as_a_local_file(tiny_cfg, checkpoint, image, inferencer, server, tmp_path):
    """So that what is known of that file (its AP, its latency) holds, and that nothing in it runs."""
    remote = AnyDepthInferencer(tiny_cfg, f'{server}/tiny.pth', 'cpu', show_progress=False)
    assert remote.checkpoint_sha256 == inferencer.checkpoint_sha256 is not None
    assert predict(remote, image, skip='TTFF') == predict(inferencer, image, skip='TTFF')
    (tmp_path / 'crafted.pth').write_bytes(b'\x80\x04cposix\nsystem\n(S"touch hacked"\ntR.')
    for name in ('crafted', 'none'):
        with pytest.raises(UserError, match=f'cannot use {server}/{name}.pth'):
            AnyDepthInferencer(tiny_cfg, f'{server}/{name}.pth', 'cpu')
    assert not os.path.exists('hacked')


def test_models_and_devices_that_are_not_there(checkpoint):
    with pytest.raises(UserError, match='did you mean'):
        AnyDepthInferencer(ROOT / 'configs' / 'mask_rcnn_r50_and_1x_coco.py', checkpoint)
    with pytest.raises(UserError, match="'retinanot' is neither a config file"):
        AnyDepthInferencer('retinanot', checkpoint)
    with pytest.raises(UserError, match="device 'abacus' cannot be used"):
        AnyDepthInferencer('retinanet_r50_fpn_1x_coco', checkpoint, 'abacus')


def test_a_batch_of_none(inferencer, image):
    with pytest.raises(UserError, match='batch_size should be at least 1, but got 0'):
        inferencer(image, batch_size=0)
    with pytest.raises(UserError, match='batch_size should be a whole number, but got 1.5'):
        inferencer(image, batch_size=1.5)


def test_arguments_of_other_types(inferencer, image, checkpoint):
    with pytest.raises(UserError, match='out_dir should be a path, but got a int'):
        inferencer(image, out_dir=5)
    for name in ('sub_nets', 'images', 'cache_dir'):
        with pytest.raises(UserError, match=f'{name} should be a path, but got a list'):
            AnyDepthInferencer('retinanet_r50_fpn_1x_coco', checkpoint, **{name: []})
    with pytest.raises(UserError, match='model should be a path, but got a int'):
        AnyDepthInferencer(5, checkpoint)
    with pytest.raises(UserError, match='weights should be a path, but got a dict'):
        AnyDepthInferencer('retinanet_r50_fpn_1x_coco', {})
    with pytest.raises(UserError, match='device 1.5 cannot be used'):
        AnyDepthInferencer('retinanet_r50_fpn_1x_coco', checkpoint, 1.5)
    with pytest.raises(UserError, match='there are no weights to run'):
        AnyDepthInferencer()


@pytest.mark.parametrize('code', ['TTT', 'TTXT', '', 'TTTTT', 3])
def test_bad_codes(inferencer, image, code):
    with pytest.raises(UserError, match=r'such as FFFF \(super-net\)'):
        inferencer(image, skip=code)
