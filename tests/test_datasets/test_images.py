import pickle
import warnings

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile, Resize
from mmengine.dataset import BaseDataset
from PIL import Image
from torch.utils.data import DataLoader

from adn_mmdet import UserError
from adn_mmdet.datasets.images import compare_sizes, name_unreadable, require_images

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)


class Images(BaseDataset):
    """The given files."""

    def load_data_list(self):
        return [{'img_path': path} for path in self.ann_file.split()]


def loader_of(*paths, num_workers=0, **kwargs):
    pipeline = [LoadImageFromFile(**kwargs)]
    dataset = Images(' '.join(map(str, paths)), pipeline=pipeline, test_mode='ignore_empty' not in kwargs)
    return DataLoader(dataset, batch_size=None, num_workers=num_workers)


def kinds_of_images(folder):
    """Files of all sorts that mmdet reads."""
    image = Image.fromarray(PIXELS)
    turned = Image.Exif()
    turned[274] = 6
    images = {
        'plain.jpg': (image, {}),
        'plain.png': (image, {}),
        'turned.jpg': (image, {'exif': turned}),
        'grey.jpg': (image.convert('L'), {}),
        'alpha.png': (image.convert('RGBA'), {}),
        'palette.png': (image.convert('P'), {}),
        'cmyk.jpg': (image.convert('CMYK'), {}),
        'plain.bmp': (image, {}),
    }
    for name, (content, options) in images.items():
        content.save(folder / name, **options)
    (folder / 'trailer.jpg').write_bytes((folder / 'plain.jpg').read_bytes() + b'more')
    return sorted(folder.iterdir())


def test_missing_and_empty_files(tmp_path):
    images = [{'file_name': f'{index}.png'} for index in range(3)]
    for image in images:
        (tmp_path / image['file_name']).write_bytes(b'x')
    require_images(tmp_path, images)
    (tmp_path / '1.png').write_bytes(b'')
    with pytest.raises(UserError, match='1 of 3 images are empty, the first is .*1.png: download them again'):
        require_images(tmp_path, images)
    (tmp_path / '2.png').unlink()
    with pytest.raises(UserError, match='1 of 3 images are missing, the first is .*2.png'):
        require_images(tmp_path, images)


def test_sizes_are_those_that_mmdet_reads(tmp_path):
    paths = kinds_of_images(tmp_path)
    images = []
    for path in paths:
        height, width = LoadImageFromFile().transform({'img_path': str(path)})['img'].shape[:2]
        images.append({'file_name': path.name, 'height': height, 'width': width})
    assert {(image['height'], image['width']) for image in images} == {(20, 30), (30, 20)}
    assert compare_sizes(tmp_path, images) is None
    (turned,) = [image for image in images if image['file_name'] == 'turned.jpg']
    turned.update(height=20, width=30)
    warning = compare_sizes(tmp_path, images)
    assert '1 of 9 images' in warning and 'turned.jpg is 30×20 (height × width), not 20×30' in warning
    assert compare_sizes(tmp_path, [turned] * 500).startswith('50 of 50')
    paths[0].write_text('<html>')
    with pytest.raises(UserError, match=f'cannot read the image .*{paths[0].name} .it is no whole image'):
        compare_sizes(tmp_path, images)


def test_images_are_read_as_mmdet_reads_them(tmp_path):
    paths = kinds_of_images(tmp_path)
    named = name_unreadable(loader_of(*paths))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for ours, stock in zip(named, loader_of(*paths), strict=True):
            assert ours.keys() == stock.keys() and np.array_equal(ours['img'], stock['img'])
            assert ours['img_shape'] == ours['ori_shape'] == stock['ori_shape']
    pickle.loads(pickle.dumps(named.dataset))  # workers may be spawned


def bad_files(folder):
    whole = {suffix: cv2.imencode(suffix, np.tile(PIXELS, (9, 9, 1)))[1].tobytes() for suffix in ('.jpg', '.png')}
    contents = {
        'empty.jpg': b'',
        'html.jpg': b'<html>',
        'half.jpg': whole['.jpg'][: len(whole['.jpg']) // 2],
        'cut.jpg': whole['.jpg'][:-500],
        'half.png': whole['.png'][: len(whole['.png']) // 2],
        'cut.png': whole['.png'][:-500],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [*(folder / name for name in contents), folder / 'missing.jpg']


@pytest.mark.parametrize('num_workers', [0, 1])
def test_what_cannot_be_read_is_named(tmp_path, num_workers):
    paths = bad_files(tmp_path)
    for path in paths if not num_workers else paths[2:4]:
        with pytest.raises(UserError) as error:
            list(name_unreadable(loader_of(path, num_workers=num_workers)))
        message = str(error.value)
        assert message.startswith(f'cannot read the image {path} (') and message.endswith('download it again'), message
        assert '\n' not in message
    if not num_workers:
        assert 'No such file' in message


def test_files_that_may_be_passed_over_are(tmp_path):
    good = tmp_path / 'good.png'
    cv2.imwrite(str(good), PIXELS)
    loader = name_unreadable(loader_of(tmp_path / 'missing.jpg', good, ignore_empty=True))
    assert np.array_equal(next(iter(loader))['img'], PIXELS)


def test_an_image_that_is_resized_to_nothing_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / 'thin.png'), np.zeros((10, 20000, 3), np.uint8))
    loader = loader_of(tmp_path / 'thin.png')
    loader.dataset.pipeline.transforms.append(Resize(scale=(64, 64), keep_ratio=True))
    with pytest.raises(UserError, match='Resize fails on .*thin.png .(cv2.)?error') as error:
        list(name_unreadable(loader))
    assert '\n' not in str(error.value)


def test_an_image_that_a_few_bytes_blow_up(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    path = tmp_path / 'bomb.png'
    cv2.imwrite(str(path), PIXELS)
    said = {'file_name': 'bomb.png', 'height': 4, 'width': 4}
    for work in (lambda: compare_sizes(tmp_path, [said]), lambda: list(name_unreadable(loader_of(path)))):
        with pytest.raises(UserError, match='bomb.png: it has over 200 pixels'):
            work()
    assert compare_sizes(tmp_path, [{'file_name': 'bomb.png', 'height': 20, 'width': 30}]) is None


def test_a_run_without_iterations_is_refused(tmp_path):
    dataset = loader_of(tmp_path / 'a.png').dataset
    with pytest.raises(UserError, match='a run of 0 iterations: 1 images make no batch of 8'):
        name_unreadable(DataLoader(dataset, batch_size=8, drop_last=True))
