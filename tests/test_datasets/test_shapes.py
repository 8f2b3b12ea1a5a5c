"""Tests of the generated shapes data set."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from tiny import load_tool

from adn_mmdet.datasets.shapes import CLASSES, MIN_VISIBLE_AREA, make_shapes
from adn_mmdet.files import _host

SMALL = {'num_train': 6, 'num_val': 3, 'image_size': 48}
NUM_TRAIN, NUM_VAL = 64, 32

# pycocotools 2.0.11 decodes in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')


@pytest.fixture(scope='module')
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), NUM_TRAIN, NUM_VAL)


@pytest.fixture(scope='module', params=['train', 'val'])
def coco(shapes_dir: Path, request: pytest.FixtureRequest) -> COCO:
    return COCO(str(_json_path(shapes_dir, request.param)))


def _json_path(out_dir: Path, split: str) -> Path:
    return out_dir / 'annotations' / f'instances_{split}.json'


def _read(out_dir: Path, split: str) -> dict[str, Any]:
    return json.loads(_json_path(out_dir, split).read_text())


def _files(out_dir: Path) -> dict[str, bytes]:
    paths = (path for path in out_dir.rglob('*') if path.is_file())
    return {str(path.relative_to(out_dir)): path.read_bytes() for path in paths}


def _times(out_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out_dir.rglob('*')}


def test_layout_is_cocos(tmp_path: Path) -> None:
    assert make_shapes(str(tmp_path), **SMALL) == tmp_path
    expected = {f'annotations/instances_{split}.json' for split in ('train', 'val')}
    expected |= {f'train/{number:06d}.png' for number in range(1, 7)}
    expected |= {f'val/{number:06d}.png' for number in range(1, 4)}
    assert set(_files(tmp_path)) == expected


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (_files(make_shapes(tmp_path / name, **SMALL)) for name in ('a', 'b'))
    assert first == second


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = make_shapes(tmp_path / 'few', 3, 2, 48)
    many = make_shapes(tmp_path / 'many', 6, 4, 48)
    few_files, many_files = _files(few), _files(many)
    for name in ('train/000003.png', 'val/000002.png'):
        assert few_files[name] == many_files[name]
    num_few = len(_read(few, 'val')['annotations'])
    assert _read(few, 'val')['annotations'] == _read(many, 'val')['annotations'][:num_few]


def test_seeds_and_splits_differ(tmp_path: Path) -> None:
    first = _files(make_shapes(tmp_path / 'a', **SMALL))
    second = _files(make_shapes(tmp_path / 'b', **SMALL, seed=1))
    assert all(first[name] != second[name] for name in first)
    assert first['train/000001.png'] != first['val/000001.png']


def test_ids_start_at_one_without_gaps(coco: COCO) -> None:
    for entries in (coco.imgs, coco.anns):
        assert list(entries) == list(range(1, len(entries) + 1))
    names = tuple(category['name'] for category in coco.loadCats(range(1, len(CLASSES) + 1)))
    assert names == CLASSES


def test_image_entries_match_the_files(shapes_dir: Path) -> None:
    for split, count in (('train', NUM_TRAIN), ('val', NUM_VAL)):
        images = _read(shapes_dir, split)['images']
        assert len(images) == count
        for image in images:
            pixels = cv2.imread(str(shapes_dir / split / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3) == (192, 192, 3)


def test_masks_agree_with_bbox_and_area(coco: COCO) -> None:
    for annotation in coco.anns.values():
        rows, columns = np.nonzero(coco.annToMask(annotation))
        left, top = columns.min(), rows.min()
        assert annotation['bbox'] == [left, top, columns.max() - left + 1, rows.max() - top + 1]
        assert annotation['area'] == len(rows) >= MIN_VISIBLE_AREA
        assert annotation['iscrowd'] == 0


def test_instances_of_an_image_do_not_overlap(coco: COCO) -> None:
    for annotations in coco.imgToAnns.values():
        assert sum(coco.annToMask(annotation) for annotation in annotations).max() == 1


def test_shapes_occlude_one_another(coco: COCO) -> None:
    def touches_another(annotation: dict[str, Any]) -> bool:
        grown = cv2.dilate(coco.annToMask(annotation), np.ones((3, 3), np.uint8))
        others = coco.imgToAnns[annotation['image_id']]
        return any((grown & coco.annToMask(other)).any() for other in others if other is not annotation)

    assert np.mean([touches_another(annotation) for annotation in coco.anns.values()]) > 0.4


def test_some_images_are_empty(coco: COCO) -> None:
    num_empty = len(coco.imgs) - len({entry['image_id'] for entry in coco.anns.values()})
    assert 0.05 <= num_empty / len(coco.imgs) <= 0.08


def test_every_class_occurs_often(coco: COCO) -> None:
    labels = [annotation['category_id'] for annotation in coco.anns.values()]
    counts = np.bincount(labels, minlength=len(CLASSES) + 1)[1:]
    assert counts.min() > 0.5 * counts.mean()


def test_second_call_rewrites_nothing(tmp_path: Path) -> None:
    make_shapes(tmp_path, **SMALL)
    before = _times(tmp_path)
    make_shapes(tmp_path, **SMALL)
    assert _times(tmp_path) == before


@pytest.mark.parametrize('change', [{'num_train': 4}, {'num_val': 5}, {'image_size': 64}, {'seed': 1}])
def test_changed_arguments_replace_the_set(tmp_path: Path, change: dict[str, int]) -> None:
    arguments = SMALL | change
    make_shapes(tmp_path / 'changed', **SMALL)
    changed = _files(make_shapes(tmp_path / 'changed', **arguments))
    assert changed == _files(make_shapes(tmp_path / 'fresh', **arguments))


@pytest.mark.parametrize(
    'missing',
    [
        ('annotations/instances_train.json',),
        ('annotations/instances_val.json', 'annotations/instances_train.json'),
        ('annotations/instances_val.json', 'val/000002.png'),
        ('val/000002.png',),
    ],
)
def test_cut_off_set_is_completed(tmp_path: Path, missing: Sequence[str]) -> None:
    whole = _files(make_shapes(tmp_path, **SMALL))
    for name in missing:
        (tmp_path / name).unlink()
    assert _files(make_shapes(tmp_path, **SMALL)) == whole


def test_failed_run_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _files(make_shapes(tmp_path, **SMALL))
    monkeypatch.setattr(cv2, 'imwrite', lambda *_: False)
    with pytest.raises(OSError, match=r'000001\.png could not be written'):
        make_shapes(tmp_path, **SMALL, seed=1)
    assert _files(tmp_path) == whole


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    whole = _files(make_shapes(tmp_path / 'whole', **SMALL))
    left = tmp_path / 'cut' / f'shapes.{_host()}-999999999-0123.partial' / 'train'
    left.mkdir(parents=True)
    (left / '000001.png').write_bytes(b'half')
    assert _files(make_shapes(tmp_path / 'cut', **SMALL)) == whole


def test_names_in_an_annotation_file_are_not_followed(tmp_path: Path) -> None:
    """A crafted file of an earlier set once made the script delete what its names pointed to."""
    precious = tmp_path / 'precious.png'
    precious.write_bytes(b'kept')
    out_dir = make_shapes(tmp_path / 'set', **SMALL)
    content = _read(out_dir, 'train')
    content['images'][0]['file_name'] = str(precious)
    content['images'][1]['file_name'] = '../../precious.png'
    _json_path(out_dir, 'train').write_text(json.dumps(content))
    make_shapes(out_dir, **SMALL, seed=1)
    assert precious.read_bytes() == b'kept'


@pytest.mark.parametrize(
    ('name', 'is_ours'),
    [
        ('train/000001.png', False),
        ('train/cat.png', False),
        ('train/cat.png', True),
        ('a.txt', True),
        ('val/a/b', True),
    ],
)
def test_files_of_others_are_left_alone(tmp_path: Path, name: str, is_ours: bool) -> None:
    if is_ours:
        make_shapes(tmp_path, **SMALL)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'mine')
    before = _files(tmp_path)
    with pytest.raises(ValueError, match='is not of a generated set and is left alone: give another folder'):
        make_shapes(tmp_path, **SMALL, seed=1)
    assert _files(tmp_path) == before


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'train').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(ValueError, match='set/train is not of a generated set'):
        make_shapes(tmp_path / 'set', **SMALL)


@pytest.mark.parametrize('content', ['{"info": {"description": "mine"}}', '[]', 'not JSON'])
def test_annotations_of_others_are_left_alone(tmp_path: Path, content: str) -> None:
    path = _json_path(tmp_path, 'val')
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=r'not of a generated set.*another folder'):
        make_shapes(tmp_path, **SMALL)
    assert _files(tmp_path) == {'annotations/instances_val.json': content.encode()}


@pytest.mark.parametrize(
    ('name', 'value', 'lowest'),
    [
        ('num_train', 0, 1),
        ('num_val', -3, 1),
        ('num_val', 2.5, 1),
        ('image_size', 31, 32),
        ('seed', -1, 0),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, name: str, value: float, lowest: int) -> None:
    message = re.escape(f'{name} is {value}, but must be a whole number of at least {lowest}')
    with pytest.raises(ValueError, match=message):
        make_shapes(tmp_path / 'set', **{name: value})
    assert not (tmp_path / 'set').exists()


def test_smallest_size_works(tmp_path: Path) -> None:
    make_shapes(tmp_path, 4, 4, image_size=32)
    assert _read(tmp_path, 'val')['annotations']


@pytest.fixture(scope='module')
def tool_main() -> Callable[[Sequence[str]], int]:
    return load_tool('make_shapes').main


def test_tool_writes_a_set(
    tool_main: Callable[[Sequence[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['--num-train', '3', '--num-val', '2', '--image-size', '48', '--seed', '5']
    assert tool_main([str(tmp_path / 'tool'), *options]) == 0
    assert re.fullmatch(r'.*tool: 3 train and 2 val images .*\n', capsys.readouterr().out)
    assert _files(tmp_path / 'tool') == _files(make_shapes(tmp_path / 'api', 3, 2, 48, 5))


def test_tool_refuses_a_bad_value_in_one_line(
    tool_main: Callable[[Sequence[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool_main([str(tmp_path), '--num-val', '0']) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert re.fullmatch(r'error: num_val is 0, but .*\n', captured.err)


def test_tool_refuses_a_folder_that_is_a_file(tool_main: Callable[[Sequence[str]], int], tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    assert tool_main([str(tmp_path / 'file'), '--num-train', '1']) == 2
