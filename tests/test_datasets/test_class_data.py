"""Data for classifiers that is missing, or whose classes do not match: one line each, before a run."""

import copy
import shutil

import pytest
from classifiers import make_images, small_config
from mmengine.registry import init_default_scope

from adn_mmdet import UserError
from adn_mmdet.config import load_config, override
from adn_mmdet.datasets.preparation import prepare_data


@pytest.fixture(scope='module')
def read(tmp_path_factory):
    """The config, and its images."""
    folder = tmp_path_factory.mktemp('images')
    data = make_images(folder / 'data', dict(train=1, val=1))
    return load_config(small_config(folder, data)), data


@pytest.fixture
def check(read, tmp_path):
    """Prepares a run's data, of a copy of the images, with changes to the config."""
    data = tmp_path / 'data'
    shutil.copytree(read[1], data)

    def prepare(*splits, **options):
        cfg = copy.deepcopy(read[0])
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].dataset.data_root = str(data)
        override(cfg, {name.replace('__', '.'): value for name, value in options.items()})
        init_default_scope('mmpretrain')
        prepare_data(cfg, *(splits or ('train', 'val')))

    prepare.data = data
    return prepare


def test_what_is_right_passes(check):
    check()
    check('test')
    shutil.rmtree(check.data / 'train')
    check('test')  # where there is no training set


CLASSES = 'val_dataloader__dataset__metainfo__classes'


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(val_dataloader__dataset__split='tset'), 'there is no image folder .*/tset: put ImageNet there'),
        ({CLASSES: ['a', 'b']}, r'/val has 3 class folders \(cat, dog, owl\), but the config has 2 classes \(a, b\)'),
        ({CLASSES: ['owl', 'dog', 'cat']}, r'numbered by the sorted names .* another order \(owl, dog, cat\): sort'),
        ({CLASSES: '/no/names.txt'}, 'there is no class file /no/names.txt: it should hold a name a line'),
        (dict(model__head__num_classes=2), 'model.head.num_classes is 2, but the data set has 3 classes'),
        (dict(data_preprocessor__num_classes=9), 'data_preprocessor.num_classes is 9, but the data set has 3 classes'),
        (dict(val_dataloader__dataset__ann_file='no.txt'), 'there is no annotation file .*/no.txt'),
    ],
    ids=str,
)
def test_what_does_not_match_is_named(check, options, message):
    with pytest.raises(UserError, match=message) as error:
        check(**options)
    assert '\n' not in str(error.value)


def test_class_folders_of_other_names(check):
    (check.data / 'val' / 'owl').rename(check.data / 'val' / 'emu')
    for splits in ((), ('test',)):  # also against what was trained on
        with pytest.raises(
            UserError, match='should have the same class folders, .* but differ: (emu|owl) and (emu|owl)'
        ):
            check(*splits)
    (check.data / 'val' / '.hidden').mkdir()
    shutil.rmtree(check.data / 'train')
    check('test')
    for name in ('cat', 'dog', 'emu'):
        shutil.rmtree(check.data / 'val' / name)
    with pytest.raises(UserError, match='/val has no folder of images a class: put ImageNet there'):
        check('test')


@pytest.mark.parametrize(
    'text, message',
    [
        ('cat/0.png 0\ndog/0.png 3\n', 'val.txt, line 2 should be an image and a label below 3, but is dog/0.png 3'),
        ('cat/0.png 0\ndog/0.png\n', 'val.txt, line 2 should be an image and a label below 3, but is dog/0.png'),
        ('cat/0.png 0\nemu/0.png 1\n', '1 of 2 images are missing, the first is .*/val/emu/0.png'),
        ('', 'val.txt lists no images'),
    ],
)
def test_lists_of_labels(check, text, message):
    (check.data / 'meta').mkdir()
    (check.data / 'meta' / 'val.txt').write_text(text)  # which ImageNet reads where it is there
    with pytest.raises(UserError, match=message):
        check()


def test_a_list_of_labels_that_is_right(check):
    (check.data / 'meta').mkdir()
    (check.data / 'meta' / 'val.txt').write_text('cat/0.png 0\nowl/0.png 2\n')
    check()
