import numpy as np
import pytest

from adn_mmdet import UserError
from adn_mmdet.inference import list_inputs


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('none.jpg', 'there is no none.jpg: give an image'),
        ('none.mp4', 'there is no video none.mp4'),
        ('notes.txt', 'notes.txt should be an image'),
        ('empty.png', 'empty.png is empty: download it again'),
        ('empty.mp4', 'empty.mp4 is no video that OpenCV can read'),
        ('noise.mp4', 'noise.mp4 is no video that OpenCV can read'),
        ('folder', 'there is no image in folder: put some there'),
        ('', "there is no '': give an image"),
        ([], 'the list is empty'),
        (['good.png', 'none.jpg'], 'there is no none.jpg'),
        (np.zeros((8, 8)), r'should be an array \(H, W, 3\), BGR, but got shape \(8, 8\)'),
        (np.zeros((0, 8, 3)), r'got shape \(0, 8, 3\)'),
        (3.5, 'but got a float'),
        (None, 'but got a NoneType'),
    ],
)
def test_what_cannot_be_looked_at(elsewhere, given, message):
    (elsewhere / 'folder').mkdir()
    (elsewhere / 'good.png').write_bytes(b'not looked into yet')
    for name, content in (('notes.txt', b'text'), ('empty.png', b''), ('empty.mp4', b''), ('noise.mp4', b'noise' * 99)):
        (elsewhere / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list_inputs(given)


def test_an_image_that_cannot_be_decoded_is_named(inferencer, tmp_path):
    path = tmp_path / 'broken.jpg'
    path.write_bytes(b'\xff\xd8 no more than a start')
    with pytest.raises(UserError, match=r'broken\.jpg cannot be read as an image'):
        inferencer(path, skip='TTTT', out_dir=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert str(inferencer.backbone.resolve_skip()) == 'FFFF'
    for url in ('https://127.0.0.1:9/a.jpg', 'abc://a.jpg'):
        with pytest.raises(UserError, match=f'{url} cannot be read as an image'):
            inferencer(url)
