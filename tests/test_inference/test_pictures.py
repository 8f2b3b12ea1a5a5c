import cv2
import numpy as np
import pytest

from adn_mmdet.inference.pictures import draw_label, encode_picture, picture_name


@pytest.mark.parametrize('size', [(96, 192), (480, 640), (1500, 2000)])
def test_a_label_is_white_on_black_whatever_is_below(size):
    noise = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    white = draw_label(np.full_like(noise, 255), 'TTFF  23.4 ms')
    height, width = (1 + np.argwhere(white[..., 0] == 0).max(axis=0)).tolist()
    assert 12 < height < 30 + size[0] / 20 and 0.15 * size[1] < width < 0.7 * size[1]
    for below in (np.zeros_like(noise), noise):
        picture = draw_label(below.copy(), 'TTFF  23.4 ms')
        assert np.array_equal(picture[:height, :width], white[:height, :width])
        assert np.array_equal(picture[height:], below[height:])
        assert np.array_equal(picture[:, width:], below[:, width:])
    assert (white[:height, :width] > 150).mean() > 0.03  # letters


@pytest.mark.parametrize(
    ('image', 'name'),
    [
        ('a/street.jpg', 'street.jpg'),
        ('a/street.PNG', 'street.PNG'),
        ('a/street.pgm', 'street.pgm.png'),
        ('https://host/a/street.jpg?size=3', 'street.jpg'),
        (np.zeros((2, 2, 3)), '00000007.jpg'),
    ],
)
def test_names(image, name):
    assert picture_name(image, 7) == name


def test_a_picture_is_rgb(tmp_path):
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 0] = 255
    (tmp_path / 'red.png').write_bytes(encode_picture('red.png', red))
    assert cv2.imread(str(tmp_path / 'red.png'))[0, 0].tolist() == [0, 0, 255]
