"""An exported file in the place of a checkpoint: tools/test.py, benchmark.py, compare.py, and AnyDepthInferencer."""

import copy
import errno
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from artifact import make_artifact
from conftest import DEMO_CONFIG
from parity import make_lively, noise
from tiny import build, load_tool

from adn_mmdet import UserError
from adn_mmdet.config import load_config
from adn_mmdet.evaluation import smaller
from adn_mmdet.export.any_depth import RUNTIME
from adn_mmdet.export.any_depth_runtime import AnyDepthRuntime
from adn_mmdet.export.artifact import Artifact
from adn_mmdet.export.smaller import make_smaller
from adn_mmdet.files import file_sha256, write_together
from adn_mmdet.inference import AnyDepthInferencer

SHA = 'a' * 64


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    rows = [dict(skip='FFFF', bbox_mAP=0.5), dict(skip='TFFF', bbox_mAP=0.6), dict(skip='TTTT', bbox_mAP=0.4)]
    other = [dict(skip='FFFF', bbox_mAP=0.9, size=320), dict(skip='FFFF', bbox_mAP=0.9, proposals=7)]
    about = dict(rows=rows + other, checkpoint_sha256=SHA)
    return make_artifact(tmp_path_factory.mktemp('artifact') / 'tiny.onnx', about=about)


@pytest.fixture
def tool(tiny_options, tmp_path, monkeypatch):
    """Run a script on the demo's config and its narrow layers; the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments, options=()):
        return load_tool(name).main([*map(str, arguments), *tiny_options, *options])

    return run


@pytest.fixture(scope='module')
def lively(trained, tiny_options, tmp_path_factory):
    """The demo's narrow detector with weights that find things, and its exported file."""
    folder = tmp_path_factory.mktemp('lively')
    narrow = {'model.backbone.base_channels': 8, 'model.neck.in_channels': [32, 64, 128, 256]}  # as in tiny_options
    cfg = load_config(DEMO_CONFIG, narrow)
    torch.save(make_lively(build(cfg)).state_dict(), folder / 'lively.pth')
    arguments = [DEMO_CONFIG, folder / 'lively.pth', folder / 'lively.onnx']
    assert load_tool('export_any_depth').main([*map(str, arguments), *tiny_options]) == 0
    return folder / 'lively.pth', folder / 'lively.onnx'


@pytest.fixture
def inferencer(path):
    return AnyDepthInferencer(path, show_progress=False)


def test_float16_with_its_ap_beside_float32s(tool, lively, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(smaller, 'MOST_LOST', -1)  # so that every line is a warning
    assert tool('export_any_depth', DEMO_CONFIG, lively[0], 'small.onnx', '--float16') == 0
    assert {'small.onnx', 'any_depth_runtime.py'} == {path.name for path in tmp_path.iterdir() if path.is_file()}
    logged = capsys.readouterr().out
    for line in ('FFFF box AP', 'FFFF mask AP', 'TTTT box AP', 'TTTT mask AP'):
        assert re.search(rf'WARNING - {line}: [0-9.]+, in float32 [0-9.]+; it loses', logged)
    holds = {tensor.data_type for tensor in onnx.load(tmp_path / 'small.onnx').graph.initializer}
    assert onnx.TensorProto.FLOAT16 in holds
    assert_near(tmp_path / 'small.onnx', lively[1], 0.01)


@pytest.mark.parametrize('calibration', ['dynamic', 'images'])
def test_int8(lively, shapes, tmp_path, calibration):
    images = [str(path) for path in (shapes / 'val').iterdir()] if calibration == 'images' else calibration
    make_smaller(lively[1], tmp_path / 'small.onnx', images)
    nodes = onnx.load(tmp_path / 'small.onnx').graph.node
    inside = {node.op_type for branch in nodes if branch.op_type == 'If' for node in branch.attribute[0].g.node}
    assert ('ConvInteger' in inside) == (calibration == 'dynamic') and ('Conv' in inside) == (calibration == 'images')
    assert {'ConvInteger', 'QuantizeLinear'} & {node.op_type for node in nodes}
    assert_near(tmp_path / 'small.onnx', lively[1], 0.3)


def assert_near(path, exact, most):
    onnx.checker.check_model(str(path))
    small, exact = AnyDepthRuntime(path), AnyDepthRuntime(exact)
    assert {**small.about, 'precision': None} == {**exact.about, 'precision': None} and 'precision' in small.about
    for code in ('FFFF', 'TFTF', 'TTTT'):
        a, b = (runtime(noise((64, 64, 3)), code).scores[:5] for runtime in (small, exact))
        assert 0 < np.abs(a - b).max() < most


def test_what_cannot_be_made_smaller(tool, lively, tmp_path, capsys):
    assert tool('export_any_depth', DEMO_CONFIG, lively[0], 'small.onnx', '--int8', 'nowhere') == 2
    assert 'there is no nowhere' in capsys.readouterr().err and not list(tmp_path.glob('*.onnx'))
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    with pytest.raises(UserError, match='broken.jpg cannot be read as an image'):
        make_smaller(lively[1], tmp_path / 'small.onnx', [str(tmp_path / 'broken.jpg')])


def test_a_full_disk_keeps_the_file_in_float32(tool, path, tmp_path, capsys, monkeypatch):
    """The second file does not fit: the first one stays, with what runs it, and what was there stays as it was."""

    def export(cfg, checkpoint, out, *_):
        return [Path(shutil.copy(path, out)), Path(shutil.copy(RUNTIME, out.parent))]

    (tmp_path / 'small.onnx').write_bytes(b'the last export')
    monkeypatch.setattr('adn_mmdet.export.any_depth.export_any_depth', export)
    monkeypatch.setattr('adn_mmdet.export.smaller._float16', lambda model: model)
    monkeypatch.setattr('adn_mmdet.export.smaller.write_together', full_disk)
    assert tool('export_any_depth', DEMO_CONFIG, 'weights.pth', 'small.onnx', '--float16') == 2
    message = 'cannot write small.onnx (No space left on device): make space; the file in float32 is kept as small_'
    assert capsys.readouterr().err.splitlines()[-1].startswith(f'error: {message}')
    assert (tmp_path / 'small.onnx').read_bytes() == b'the last export'
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {'small.onnx', 'small_float32.onnx', 'any_depth_runtime.py'}
    assert (tmp_path / 'small_float32.onnx').read_bytes() == path.read_bytes()


def full_disk(files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left on device')))
        write_together(files)


def test_its_own_ap_and_ms_beside_pytorchs(tool, lively, tmp_path, capsys):
    weights, path = lively
    read = lambda name: json.loads((tmp_path / name).read_text())  # noqa: E731
    common = ['--work-dir', 'work', '--skip', 'FFFF,TTFF,TTTT', '--out']
    assert tool('test', DEMO_CONFIG, path, *common, 'exported.pkl') == 0
    run, exported = (read('work/sub_nets.json')[key] for key in ('run', 'rows'))
    sha256 = file_sha256(weights)
    assert (run['runtime'], run['checkpoint_sha256']) == ('onnxruntime-cpu', sha256)
    assert run['artifact_sha256'] == file_sha256(path)
    assert tool('test', DEMO_CONFIG, weights, *common, 'pytorch.pkl') == 0
    content = read('work/sub_nets.json')
    assert 'runtime' not in content['run']
    assert [len(other['rows']) for other in content['other_runs']] == [3]  # none of PyTorch's is in their place
    for row, other in zip(exported, content['rows'], strict=True):
        assert row['skip'] == other['skip'] and row['gmacs'] == other['gmacs']
        for name in ('bbox_mAP', 'segm_mAP'):
            assert row[name] == pytest.approx(other[name], abs=5e-4)
        found, expected = (
            pickle.loads(next(tmp_path.glob(f'{kind}*{row["skip"]}.pkl')).read_bytes())
            for kind in ('exported', 'pytorch')
        )
        for a, b in zip(found, expected, strict=True):
            a, b = a['pred_instances'], b['pred_instances']
            assert len(b['scores']) > 10
            assert a['scores'].numpy() == pytest.approx(b['scores'].numpy(), abs=1e-4)
            assert (a['labels'] == b['labels']).float().mean() > 0.9  # of equal scores, either comes first

    for name, file in dict(exported=path, pytorch=weights).items():
        arguments = ['--skip', 'FFFF', '--rounds', 1, '--device', 'cpu', '--json', f'{name}.json']
        assert tool('benchmark', 'latency', DEMO_CONFIG, file, *arguments) == 0
    latency = read('exported.json')
    assert latency['run']['runtime'] == 'onnxruntime-cpu' and latency['run']['checkpoint_sha256'] == sha256
    assert latency['rows'][0]['heads_ms'] is None and latency['rows'][0]['ms'] > 0
    both = ['work', '--latency', 'exported.json', 'pytorch.json', '--out', 'out']
    assert load_tool('compare').main(both) == 0
    rows = [row for row in read('out/compare.json')['rows'] if row['skip'] == 'FFFF']
    assert sorted('(onnxruntime-cpu)' in row['run'] for row in rows) == [False, True]
    ms = {'(onnxruntime-cpu)' in row['run']: row['ms'] for row in rows}
    assert ms == {True: latency['rows'][0]['ms'], False: read('pytorch.json')['rows'][0]['ms']}


@pytest.mark.parametrize(
    'arguments, options, match',
    [
        (['--tta', '--amp', '--norms', 'norms.pth'], [], 'is exported and runs as it is: leave tta, amp, norms out'),
        ([], ['model.test_cfg.rcnn.score_thr=0.3'], 'leave model.test_cfg.rcnn.score_thr out'),
        ([], ['model.backbone.num_stages=3', 'model.backbone.skip=FFF'], 'has 4 stages, but'),
        ([], ["test_dataloader.dataset.metainfo={'classes':('circle','triangle')}"], 'classes'),
        (['--skip', 'TTT'], [], 'is not a skip code'),
    ],
)
def test_what_a_finished_graph_cannot_do(tool, path, capsys, arguments, options, match):
    assert tool('test', DEMO_CONFIG, path, '--work-dir', 'work', *arguments, options=options) == 2
    assert match in (line := capsys.readouterr().err.splitlines()[-1]) and line.startswith('error: ')


def test_broken_files_in_one_line(tool, path, tmp_path, capsys):
    (tmp_path / 'cut.onnx').write_bytes(path.read_bytes()[:700])
    for script, name, match in (
        (['test'], 'cut.onnx', 'cut.onnx cannot be opened, it is cut off'),
        (['benchmark', 'latency'], 'none.onnx', 'there is no file none.onnx'),
    ):
        assert tool(*script, DEMO_CONFIG, name) == 2
        assert match in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match='there is no file'):
        AnyDepthInferencer('none.onnx')


def test_an_inferencer_runs_it_as_a_checkpoint(inferencer, path, shapes, tmp_path):
    paths = sorted((shapes / 'val').iterdir())[:3]
    detect = AnyDepthRuntime(path)
    for code in ('FFFF', 'TTFF', 'TTTT'):
        found = inferencer(paths, batch_size=2, skip=code)['predictions']
        for one, image in zip(found, paths):
            expected = detect(image, code)
            assert (one['skip'], one['labels']) == (code, expected.labels.tolist()) and one['ms'] > 0
            assert one['scores'] == pytest.approx(expected.scores.tolist())
            assert np.array(one['bboxes']) == pytest.approx(expected.boxes, abs=1e-4)
    inferencer(shapes / 'val', skip='TFFF', out_dir=tmp_path / 'out')
    assert len(list((tmp_path / 'out/vis').iterdir())) == 6
    (sample,) = inferencer(str(paths[0]), skip='TTTT', return_datasamples=True)['predictions']
    assert np.array_equal(sample.pred_instances.masks.numpy(), detect(paths[0]).masks)
    by_config = AnyDepthInferencer(DEMO_CONFIG, path, show_progress=False)  # whose test pipeline is then used
    assert by_config(paths, skip='TTTT')['predictions'][0]['labels'] == [2, 0, 1]
    assert str(inferencer.choose()) == 'FFFF'
    with pytest.raises(UserError, match='is not a skip code'):
        inferencer(paths, skip='TTT')


def test_proposals_and_sizes_of_a_point(inferencer, path, tool, tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    number = {
        point: len(inferencer(image, point=point)['predictions'][0]['labels']) for point in ('TTTT', 'TTTT@128/2')
    }
    assert number == {'TTTT': 3, 'TTTT@128/2': 2}
    arguments = ['--work-dir', 'work', '--skip', 'FFFF,TTTT', '--proposals', '50,2', '--out', 'found.pkl']
    assert tool('test', DEMO_CONFIG, path, *arguments) == 0
    found = {path.name: pickle.loads(path.read_bytes()) for path in tmp_path.glob('found*')}
    assert len(found) == 4
    assert sorted(len(samples[0]['pred_instances']['labels']) for samples in found.values()) == [2, 2, 3, 3]


def test_a_video(inferencer, path, tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    writer = cv2.VideoWriter(str(tmp_path / 'drive.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), 5, (64, 64))
    for _ in range(3):
        writer.write(image)
    writer.release()
    inferencer(tmp_path / 'drive.mp4', skip='TTTT', out_dir=tmp_path / 'out')
    assert [file.name for file in (tmp_path / 'out/vis').iterdir()] == ['drive.mp4']


def test_budgets_by_the_ap_in_the_file(path, shapes, tmp_path, capsys):
    inferencer = AnyDepthInferencer(path, show_progress=False, cache_dir=tmp_path, images=shapes / 'val')
    assert {str(code): worth for code, worth in inferencer.worth.items()} == dict(FFFF=0.5, TFFF=0.6, TTTT=0.4)
    assert len(inferencer.calibrate(rounds=2)) == 3
    image = str(next((shapes / 'val').iterdir()))
    assert inferencer(image, budget_ms=1e5)['predictions'][0]['skip'] == 'TFFF'
    held = list(inferencer([image] * 2, budget_ms=1e5, hold=True))
    assert [(one['point'], one['frame_ms'] > one['ms'] > 0) for one in held] == [('TFFF', True)] * 2
    again = AnyDepthInferencer(path, show_progress=False, cache_dir=tmp_path, images=shapes / 'val')
    capsys.readouterr()
    again.calibrate(rounds=2)
    assert 'Calibrating' not in capsys.readouterr().out
    plain = AnyDepthInferencer(make_artifact(tmp_path / 'plain.onnx'), show_progress=False, cache_dir=tmp_path)
    assert len(plain.worth) == 16


def test_settings_of_pytorch_are_refused(path):
    for name in ('amp', 'channels_last', 'compiled'):
        with pytest.raises(UserError, match=f'is exported and runs as it is: leave {name} out'):
            AnyDepthInferencer(path, **{name: True})


def test_threads_and_copies(path):
    model = Artifact(str(path))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo=dict(ori_shape=(128, 128), scale_factor=(0.5, 0.5)))
    found = {code: [] for code in ('FFFF', 'TTTT')}

    def many(code):
        with model.backbone.using_skip(code):
            found[code] += [float(model([image], [sample])[0].pred_instances.scores[0]) for _ in range(30)]

    threads = [threading.Thread(target=many, args=(code,)) for code in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {code: set(scores) for code, scores in found.items()} == {
        'FFFF': {found['FFFF'][0]},
        'TTTT': {found['TTTT'][0]},
    }
    assert found['TTTT'][0] < found['FFFF'][0] and 'pred_instances' not in sample
    other = copy.deepcopy(model)
    other.backbone.set_skip('TTTT')
    assert other.runtime is model.runtime and str(model.backbone.skip) == 'FFFF'
    mixed = model([image, torch.zeros(3, 32, 64, dtype=torch.uint8)], [sample, sample])  # one by one
    assert mixed[0].pred_instances.bboxes[2].tolist() == [0, 0, 128, 128]
    assert mixed[1].pred_instances.bboxes[2].tolist() == [0, 0, 128, 64]
