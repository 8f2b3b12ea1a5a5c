import json
import os

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from test_tools import fails
from tiny import load_tool

from adn_mmdet import UserError
from adn_mmdet.inference import list_inputs
from adn_mmdet.inference.annotations import CocoFile, YoloFiles


@pytest.fixture(scope='module')
def demo():
    return load_tool('demo').main


@pytest.fixture
def folder(shapes, tmp_path):
    """Two images, not square."""
    (tmp_path / 'images').mkdir()
    for image in sorted((shapes / 'val').iterdir())[:2]:
        cv2.imwrite(str(tmp_path / 'images' / image.name), cv2.imread(str(image))[:48])
    return tmp_path / 'images'


def expected(inferencer, inputs, code, score_thr):
    """What is predicted, above a score."""
    found = []
    inferencer(inputs, skip=code, on_prediction=found.append)
    return [
        {name: [one for one, score in zip(each[name], each['scores']) if score >= score_thr] for name in
         ('labels', 'scores', 'bboxes', 'masks')}
        for each in found
    ]  # fmt: skip


def test_coco_reads_back_what_was_predicted(demo, inferencer, tiny_cfg, checkpoint, folder, tmp_path):
    argv = [str(folder), tiny_cfg.filename, str(checkpoint), '--out', str(tmp_path / 'out'), '--device', 'cpu']
    argv += ['--format', 'coco', '--skip', 'TTFF', '--score-thr']
    assert demo([*argv, '0.99']) == 0  # a second run replaces what this one wrote
    assert demo([*argv, '0.2']) == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'.written_by_adn_mmdet', 'annotations.json', 'vis'}
    coco = COCO(str(tmp_path / 'out' / 'annotations.json'))
    assert [coco.cats[index]['name'] for index in (1, 2, 3)] == list(inferencer.classes)
    wanted = expected(inferencer, str(folder), 'TTFF', 0.2)
    assert sum(len(one['labels']) for one in wanted) > 2
    names = sorted(path.name for path in folder.iterdir())
    for index, (name, found) in enumerate(zip(names, wanted), start=1):
        image, rows = coco.imgs[index], coco.loadAnns(coco.getAnnIds(imgIds=index))
        assert (image['file_name'], image['width'], image['height'], image['skip']) == (name, 64, 48, 'TTFF')
        assert image['ms'] > 0
        assert [row['category_id'] - 1 for row in rows] == found['labels']
        assert [row['score'] for row in rows] == found['scores']
        assert [row['segmentation'] for row in rows] == found['masks']
        corners = np.array([row['bbox'] for row in rows])
        corners[:, 2:] += corners[:, :2]
        assert np.array_equal(corners, np.array(found['bboxes']).clip(0, [64, 48, 64, 48]))
        assert all(coco.annToMask(row).sum() == row['area'] for row in rows)
    assert len(coco.loadRes(coco.dataset['annotations']).anns) == len(coco.anns)  # which evaluation starts from


def test_yolo_reads_back_what_was_predicted(demo, inferencer, tiny_cfg, checkpoint, folder, tmp_path):
    out = tmp_path / 'out'
    argv = [str(folder), tiny_cfg.filename, str(checkpoint), '--out', str(out), '--device', 'cpu', '--format', 'yolo']
    assert demo([*argv, '--skip', 'TTTT', '--score-thr', '0.2']) == 0
    assert (out / 'classes.txt').read_text().splitlines() == list(inferencer.classes)
    wanted = expected(inferencer, str(folder), 'TTTT', 0.2)
    names = sorted(path.stem for path in folder.iterdir())
    assert [path.stem for path in sorted((out / 'labels').iterdir())] == names
    for name, found in zip(names, wanted):
        lines = [line.split() for line in (out / 'labels' / f'{name}.txt').read_text().splitlines()]
        assert [int(label) for label, *_ in lines] == found['labels']
        x, y, width, height = np.array([line[1:] for line in lines], float).T * [[64], [48], [64], [48]]
        corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]).T
        assert np.allclose(corners, np.array(found['bboxes']).clip(0, [64, 48, 64, 48]), atol=1e-4)
    supervision = pytest.importorskip('supervision', reason='the extra `supervision` is not installed')
    read = supervision.DetectionDataset.from_yolo(str(folder), str(out / 'labels'), str(out / 'data.yaml'))
    assert read.classes == list(inferencer.classes)
    assert [len(found) for _, _, found in read] == [len(found['labels']) for found in wanted]


def test_frames_are_named_as_ffmpeg_names_them(demo, tiny_cfg, checkpoint, video, tmp_path):
    out = tmp_path / 'out'
    argv = [video, tiny_cfg.filename, str(checkpoint), '--out', str(out), '--device', 'cpu', '--score-thr', '1']
    assert demo([*argv, '--format', 'coco']) == 0
    content = json.loads((out / 'annotations.json').read_text())
    assert [image['file_name'] for image in content['images']] == [f'drive_{index:06d}.jpg' for index in range(4)]
    assert content['annotations'] == []
    assert YoloFiles.names(list_inputs(video))[2:] == [(f'labels/drive_{index:06d}.txt', video) for index in range(4)]


def test_nothing_is_overwritten_or_left_half_written(demo, tiny_cfg, checkpoint, folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'out'
    argv = [str(folder), tiny_cfg.filename, str(checkpoint), '--out', str(out), '--device', 'cpu', '--format']
    out.mkdir()
    for kind, name in (('coco', 'annotations.json'), ('yolo', 'classes.txt')):
        (out / name).write_text('mine')
        fails(demo, [*argv, kind], capsys, f'{name} was not written by an inferencer: move it')
        assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == 'mine'
        (out / name).unlink()
    with pytest.raises(SystemExit, match='2'):
        demo([*argv, 'voc'])
    with pytest.raises(RuntimeError), CocoFile(out, list_inputs(str(folder)), ('circle',)) as annotations:
        annotations.add(dict(labels=[0], scores=[1.0], bboxes=[[1, 2, 3, 4]]), (48, 64))
        raise RuntimeError
    assert os.listdir(out) == []
    with pytest.raises(UserError, match='a live source has no end: leave them out'):
        CocoFile.names(iter(()))
    for suffix in ('.bmp', '.jpg'):  # two images of one name
        cv2.imwrite(str(folder / f'same{suffix}'), np.zeros((8, 8, 3), np.uint8))
    fails(demo, [*argv, 'yolo'], capsys, 'would both be written to same.txt')
