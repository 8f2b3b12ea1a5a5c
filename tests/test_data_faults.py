"""What the scripts say of data that is not as it should be."""

import contextlib
import json
import shutil

import pytest
from conftest import DEMO_CONFIG
from test_dist_scripts import shell
from test_tools import fails, results
from tiny import load_tool

from adn_mmdet.files import file_sha256


class Data:
    """A copy of the shapes, and command lines that use it."""

    def __init__(self, root, shapes, tiny_options, checkpoint):
        self.root, self.checkpoint = root, str(checkpoint)
        self.options = [option.replace(str(shapes), str(root / 'data')) for option in tiny_options]
        shutil.copytree(shapes, root / 'data')

    def file(self, split):
        return self.root / 'data' / 'annotations' / f'instances_{split}.json'

    def command(self, script, work_dir='run', *options):
        """The script's main, and its arguments."""
        checkpoint = [self.checkpoint] if script == 'test' else []
        work_dir = ['--work-dir', str(self.root / work_dir)]
        return load_tool(script).main, [DEMO_CONFIG, *checkpoint, *work_dir, *self.options, *options]

    @contextlib.contextmanager
    def edited(self, split):
        content = json.loads(self.file(split).read_text())
        yield content
        self.file(split).write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path, shapes, tiny_options, trained):
    return Data(tmp_path, shapes, tiny_options, trained / 'iter_4.pth')


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize('script, split', [('train', 'train'), ('train', 'val'), ('test', 'val')])
def test_faults_that_end_a_run_before_it_starts(data, capsys, script, split):
    whole = data.file(split).read_text()

    def refused(message):
        fails(*data.command(script), capsys, message)
        data.file(split).write_text(whole)

    cut(data.file(split))
    refused('is not whole JSON')
    with data.edited(split) as content:
        del content['annotations'][3]['bbox']
    refused('annotations[3] (id 4) lacks it')
    (data.root / 'data' / split / '000003.png').write_bytes(b'')
    refused('000003.png')
    assert {path.name for path in (data.root / 'run').iterdir()} <= {'.lock'}  # the file of a lock stays


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('script, split', [('train', 'train'), ('test', 'val')])
def test_an_image_that_is_cut_off_is_named(data, capsys, script, split, num_workers):
    for path in (data.root / 'data' / split).iterdir():  # each of them, since a training takes a few at random
        cut(path)
    name = 'train' if script == 'train' else 'test'
    options = [f'{name}_dataloader.{key}' for key in (f'num_workers={num_workers}', 'persistent_workers=False')]
    error = fails(*data.command(script, 'run', *options), capsys, f'cannot read the image {data.root}/data/{split}/00')
    assert error.count('\n') == 1


def test_objects_that_cannot_be_used_are_left_out_of_the_evaluation(data):
    with data.edited('val') as content:
        first = content['annotations'][0]
        content['annotations'].append(first | {'id': 1000, 'bbox': [5, 5, 0, 9]})
        content['annotations'].append(first | {'id': 1001, 'segmentation': [[1, 1, float('nan'), 4, 5, 5]]})
    faulty = file_sha256(data.file('val'))
    main, argv = data.command('test', 'faulty')
    with pytest.warns(UserWarning, match='1 with a box of zero or negative size .id 1000.; 1 with a polygon .*1001'):
        assert main(argv) == 0
    with data.edited('val') as content:
        del content['annotations'][-2:]
    main, argv = data.command('test', 'whole')
    assert main(argv) == 0
    ours, whole = (results(data.root / name) for name in ('faulty', 'whole'))
    assert ours['rows'] == whole['rows']
    assert ours['run']['annotations_sha256'] == faulty and not (data.root / 'whole' / 'annotations').exists()


def test_training_goes_on_without_them(data):
    with data.edited('train') as content:
        for annotation in content['annotations'][::2]:
            annotation['segmentation'] = {'size': [9, 9], 'counts': [81]}
    main, argv = data.command('train', 'run', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None')
    with pytest.warns(UserWarning, match='a malformed RLE, or one of another size .*The rest is in .*run/annotations'):
        assert main(argv) == 0


def test_all_ranks_end_and_one_says_why(data):
    with data.edited('val') as content:
        content['annotations'][1]['id'] = 1
    command = [DEMO_CONFIG, data.checkpoint, 2, '--work-dir', data.root / 'run', *data.options]
    ended = shell('dist_test.sh', *command)
    assert ended.returncode != 0 and ended.stderr.count('error: ') == 1
    assert '1 ids occur more than once in annotations (1)' in ended.stderr and 'core dumped' not in ended.stderr
