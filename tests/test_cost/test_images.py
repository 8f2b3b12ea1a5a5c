import hashlib
import json
from itertools import islice

import mmcv
import numpy as np
import pytest
import torch
from tiny import tiny_config

from adn_mmdet import UserError
from adn_mmdet.cost.images import MOST, NOISE, TimedImages, find_images


@pytest.fixture
def folder(tmp_path):
    """Three images of known colours and sizes, and what is none."""
    for index, size in enumerate([(20, 30, 3), (40, 40, 3), (30, 20, 3)]):
        mmcv.imwrite(np.full(size, index + 1, np.uint8), str(tmp_path / f'{index}.png'))
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def config_of(folder, **dataset):
    cfg = tiny_config()
    cfg.test_dataloader.dataset.update(data_root=f'{folder}/', data_prefix=dict(img=''), **dataset)
    return cfg


def test_images_of_a_folder(folder):
    images = find_images(tiny_config(), folder)
    assert images.paths == tuple(str(folder / f'{index}.png') for index in range(3))
    batches = list(islice(images.batches((64, 96)), 4))
    inputs = [batch['inputs'][0] for batch in batches]
    assert all(image.shape == (3, 64, 96) and image.dtype == torch.uint8 for image in inputs)
    assert [int(image.max()) for image in inputs] == [1, 2, 3, 1]
    # As large as fits, its ratio kept, at the upper left.
    wide, square, high = (image[0].nonzero().max(dim=0).values.tolist() for image in inputs[:3])
    assert (wide, square, high) == ([63, 95], [63, 63], [63, 42])
    assert batches[0]['data_samples'][0].ori_shape == (20, 30) and batches[0]['data_samples'][0].img_shape == (64, 96)
    (two,) = islice(images.batches((64, 64), batch_size=2), 1)
    assert [int(image.max()) for image in two['inputs']] == [1, 2] and len(two['data_samples']) == 2
    with pytest.raises(UserError, match='has none'):
        find_images(tiny_config(), folder / 'nothing')


def test_what_a_file_says_of_them(folder):
    about = find_images(tiny_config(), folder).about()
    assert (about['source'], about['number']) == (str(folder), 3)
    hashes = [hashlib.sha256((folder / f'{index}.png').read_bytes()).digest() for index in range(3)]
    assert about['sha256'] == hashlib.sha256(b''.join(hashes)).hexdigest()
    (folder / '1.png').write_bytes((folder / '0.png').read_bytes())
    assert find_images(tiny_config(), folder).about()['sha256'] != about['sha256']
    assert TimedImages().about() == dict(source=NOISE, number=0, sha256=None)


def test_the_configs_test_set(folder):
    names = [dict(id=index, file_name=f'{index}.png') for index in (2, 0, 5)]
    (folder / 'test.json').write_text(json.dumps(dict(images=names, annotations=[], categories=[])))
    images = find_images(config_of(folder, ann_file='test.json'))
    assert images.source == str(folder)
    assert [path.rpartition('/')[2] for path in images.paths] == ['0.png', '2.png']  # those that it names and has
    assert len(find_images(config_of(folder, ann_file='list.txt')).paths) == 3  # no COCO file: those of its folder
    (folder / 'test.json').write_text('{"images": [')
    with pytest.raises(UserError, match='test.json is not whole JSON'):
        find_images(config_of(folder, ann_file='test.json'))


def test_a_large_set_is_sampled_evenly(tmp_path):
    for index in range(3 * MOST):
        (tmp_path / f'{index:03d}.jpg').touch()
    paths = find_images(tiny_config(), tmp_path).paths
    assert [int(path[-7:-4]) for path in paths] == list(range(0, 3 * MOST, 3))


def test_noise_where_nothing_else_is_there(elsewhere):
    mmcv.imwrite(np.zeros((8, 8, 3), np.uint8), 'any.png')  # in the working folder, which the config does not name
    cfg = tiny_config()
    assert find_images(cfg) == TimedImages()
    cfg.test_dataloader.dataset.update(data_root='', data_prefix=dict(img=''), ann_file='')
    assert find_images(cfg) == TimedImages()
    first, second = (batch['inputs'][0] for batch in islice(TimedImages().batches((64, 96)), 2))
    assert first.shape == (3, 64, 96) and not torch.equal(first, second)
    assert torch.equal(next(TimedImages().batches((64, 96)))['inputs'][0], first)


def test_an_image_that_cannot_be_read(folder):
    (folder / '1.png').write_bytes(b'\x89PNG and no more')
    with pytest.raises(UserError, match=r'1\.png cannot be read as an image'):
        list(islice(find_images(tiny_config(), folder).batches((64, 64)), 3))
