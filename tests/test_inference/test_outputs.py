import json
import os
import shutil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from test_tools import fails
from tiny import load_tool

from adn_mmdet import UserError
from adn_mmdet.inference.outputs import output_names, require_outputs, write_output
from adn_mmdet.inference.pictures import encode_picture
from adn_mmdet.inference.video import Video, VideoWriter


@pytest.fixture
def image(shapes, elsewhere):
    """An image in the working folder's ``vis``, where annotated images go."""
    (elsewhere / 'vis').mkdir()
    return shutil.copy(sorted((shapes / 'val').iterdir())[0], 'vis/a.png')


def test_an_input_is_not_overwritten(inferencer, image):
    """Not by a picture, nor where an inferencer itself made the input."""
    before = Path(image).read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=r'vis/a\.png is an input, which the output would overwrite'):
            inferencer(image, out_dir='.', skip='TTTT')
        assert Path(image).read_bytes() == before
        write_output(Path('.'), 'vis/a.png', before)
    os.rename('vis', 'pictures')
    os.symlink('pictures', 'vis')
    with pytest.raises(UserError, match='is an input'):
        inferencer('pictures/a.png', out_dir='.', skip='TTTT')


def test_another_ones_files_are_not_overwritten(inferencer, image, shapes):
    other = shutil.copy(sorted((shapes / 'val').iterdir())[1], 'a.png')
    before = Path(image).read_bytes()
    with pytest.raises(UserError, match=r'vis/a\.png was not written by an inferencer: move it, or give another'):
        inferencer(other, out_dir='.', skip='TTTT')
    assert Path(image).read_bytes() == before and not Path('.written_by_adn_mmdet').exists()
    os.mkdir('preds')
    Path('preds/a.json').write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r'preds/a\.json was not written by an inferencer'):
        inferencer(other, out_dir='.', no_save_vis=True, no_save_pred=False, skip='TTTT')
    os.remove(image)
    os.remove('preds/a.json')
    for code in ('TTTT', 'FFFF'):  # its own it replaces
        inferencer(other, out_dir='.', no_save_pred=False, skip=code)
        assert json.loads(Path('preds/a.json').read_text())['skip'] == code
    mmcv.imwrite(np.zeros((8, 8, 3), np.uint8), 'vis/a.png')  # but not what a user has put there since
    with pytest.raises(UserError, match=r'vis/a\.png was not written by an inferencer'):
        inferencer(other, out_dir='.', skip='TTTT')


def test_a_video_is_not_overwritten(inferencer, video, elsewhere):
    os.mkdir('vis')
    shutil.copy(video, 'vis/drive.avi')
    assert output_names(Video('vis/drive.avi')) == [('vis/drive.mp4', 'vis/drive.avi')]
    Path('vis/drive.mp4').write_bytes(b'mine')
    with pytest.raises(UserError, match=r'vis/drive\.mp4 was not written by an inferencer'):
        inferencer('vis/drive.avi', out_dir='.', skip='TTTT', pred_score_thr=2.0)
    assert Path('vis/drive.mp4').read_bytes() == b'mine'
    os.remove('vis/drive.mp4')
    for _ in range(2):
        inferencer('vis/drive.avi', out_dir='.', skip='TTTT', pred_score_thr=2.0)
    shutil.move('vis/drive.mp4', 'drive.mp4')
    shutil.copy('drive.mp4', 'vis/drive.mp4')
    with pytest.raises(UserError, match='is an input'):
        inferencer('vis/drive.mp4', out_dir='.', skip='TTTT')


def test_predictions_of_two_images_are_not_one_file(inferencer, image, elsewhere):
    mmcv.imwrite(mmcv.imread(image), 'vis/a.jpg')
    with pytest.raises(UserError, match=r'a\.png and vis/a\.jpg would both be written to a\.json: detect on them one'):
        inferencer(['vis/a.png', 'vis/a.jpg'], out_dir='out', no_save_pred=False)
    assert not Path('out').exists()


def test_folders_that_cannot_be_written_are_refused_before_the_work(image, capsys, elsewhere):
    demo = load_tool('demo').main
    Path('file').write_text('')
    for out in ('/proc/nowhere', 'file', 'file/below'):
        fails(demo, [image, 'none.py', 'none.pth', '--out', out], capsys, 'cannot write to')  # before the config
    fails(demo, [image, 'none.py', 'none.pth', '--out', '.'], capsys, 'vis/a.png is an input')
    long = f'{"b" * 240}.pgm'
    shutil.copy(image, long)
    fails(demo, [long, 'none.py', 'none.pth', '--out', 'out'], capsys, 'give the image a shorter name')
    fails(demo, [image, 'none.py', 'none.pth', '--out', 'out'], capsys, 'there is no config')
    assert sorted(path.name for path in elsewhere.iterdir()) == [long, 'file', 'vis']


def test_predictions_are_written_as_they_are_returned(inferencer, image, elsewhere):
    kept = []
    inferencer([image, mmcv.imread(image)], out_dir='out', no_save_pred=False, skip='TFTF', on_prediction=kept.append)
    written = [json.loads(Path(f'out/preds/{name}.json').read_text()) for name in ('a', 0)]
    assert written == kept
    assert written[0]['skip'] == 'TFTF' and written[0]['ms'] > 0 and written[0]['masks']


def sample():
    """A prediction that no inferencer has made."""
    found = InstanceData(bboxes=torch.zeros(1, 4), scores=torch.ones(1), labels=torch.zeros(1, dtype=torch.int))
    return DetDataSample(pred_instances=found)


def test_a_sample_of_another_detector(inferencer, elsewhere):
    expected = dict(labels=[0], scores=[1.0], bboxes=[[0.0] * 4])
    assert inferencer.pred2dict(sample()) == expected
    assert inferencer.pred2dict(sample(), 'out') == expected == json.loads(Path('out/preds/0.json').read_text())
    (picture,) = inferencer.visualize([np.zeros((64, 64, 3), np.uint8)], [sample()], return_vis=True)
    assert picture.shape == (64, 64, 3)


def test_panoptic_predictions(inferencer, elsewhere, monkeypatch):
    monkeypatch.setattr('mmdet.apis.det_inferencer.VOID', 0)
    monkeypatch.setattr('mmdet.apis.det_inferencer.id2rgb', lambda ids: np.stack([ids, 0 * ids, 0 * ids], -1))
    segments = PixelData(sem_seg=torch.full((1, 4, 5), 2))
    panoptic = DetDataSample(pred_panoptic_seg=segments, metainfo=dict(img_path='b.png'))
    result = inferencer.pred2dict(panoptic, 'out')
    assert result == {'panoptic_seg_path': 'out/preds/b_panoptic_seg.png'}
    assert cv2.imread(result['panoptic_seg_path'])[0, 0].tolist() == [0, 0, 2]


def test_a_video_that_a_full_disk_cuts_off(tmp_path):
    path = tmp_path / 'a.mp4'
    with pytest.raises(UserError, match=r'a\.mp4, of 3 frames: no room is left'), VideoWriter(path, 5.0) as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 64, 3), np.uint8))
        writer.writer = OnFullDisk(writer.writer, writer.partial)
    assert not list(tmp_path.iterdir())


class OnFullDisk:
    """A writer of OpenCV's on a full disk: it says nothing."""

    def __init__(self, writer, path):
        self.writer, self.path = writer, path

    def release(self):
        self.writer.release()
        self.path.write_bytes(self.path.read_bytes()[:100])


def test_a_picture_that_its_format_cannot_hold():
    with pytest.raises(UserError, match='a.webp cannot be encoded at 16384×1: detect on an image of another format'):
        encode_picture('a.webp', np.zeros((1, 16384, 3), np.uint8))


def test_names_of_outputs():
    arrays = [np.zeros((4, 4, 3), np.uint8)] * 2
    assert output_names(['d/a.JPG', *arrays], (5, 7)) == [
        ('vis/a.JPG', 'd/a.JPG'), ('vis/00000006.jpg', 'array 1'), ('vis/00000007.jpg', 'array 2')]  # fmt: skip
    assert [name for name, _ in output_names(['d/a.b.jpg', *arrays], (5, 7), predictions=True)] == [
        'preds/a.b.json', 'preds/8.json', 'preds/9.json']  # fmt: skip
    require_outputs(Path('none'), output_names(arrays))
    assert not Path('none').exists()
