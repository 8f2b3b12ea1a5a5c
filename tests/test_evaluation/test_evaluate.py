"""Test runs through tools/test.py."""

import builtins
import errno
import json
import pickle
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import mmcv
import mmengine.fileio
import pytest
import torch
from conftest import DEMO_CONFIG
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.config import Config
from tiny import load_tool

from adn_mmdet import AdaptiveDepthResNet, ExactCocoMetric, OperatingPoint
from adn_mmdet.evaluation.evaluate import _numbers
from adn_mmdet.evaluation.loops import SubNetLoop
from adn_mmdet.evaluation.outputs import AtomicDump
from adn_mmdet.files import file_sha256
from adn_mmdet.results.intervals import interval_of_difference, unpack

CODES = ['FFFF', 'TTFF', 'TTTT']
ALL = ','.join(CODES)


@pytest.fixture
def test(trained, tiny_options, tmp_path):
    """Test the demo's checkpoint; the exit code."""
    main = load_tool('test').main

    def run(*arguments, options=(), config=DEMO_CONFIG, checkpoint=trained / 'iter_4.pth', without='nothing'):
        given = [option for option in tiny_options if not option.startswith(without)]
        argv = [str(config), str(checkpoint), '--work-dir', str(tmp_path / 'work')]
        return main([*argv, *arguments, *given, 'test_dataloader.dataset.indices=2', *options])

    return run


@pytest.fixture
def rows(tmp_path):
    """The rows that are written."""
    return lambda: {row['skip']: row for row in json.loads((tmp_path / 'work/sub_nets.json').read_text())['rows']}


@pytest.fixture
def passes(monkeypatch):
    """The points of every batch that is tested."""
    seen = []
    run_iter = SubNetLoop.run_iter
    monkeypatch.setattr(SubNetLoop, 'run_iter', lambda self, *args: (seen.append(self.points), run_iter(self, *args)))
    return seen


def test_files_are_read_once_for_all_depths(test, monkeypatch):
    reads = Counter()

    def counted(function):
        def call(path, *args, **kwargs):
            if str(path).endswith(('.jpg', '.png', 'instances_val.json')):
                reads[str(path).rpartition('.')[2]] += 1
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(mmengine.fileio, 'get', counted(mmengine.fileio.get))
    monkeypatch.setattr(builtins, 'open', counted(open))
    assert test('--skip', 'TTTT') == 0
    of_one = dict(reads)
    assert test('--skip', 'all', options=['model.test_cfg.rcnn.max_per_img=19']) == 0
    of_all = {kind: reads[kind] - number for kind, number in of_one.items()}
    assert of_one == of_all and len(of_one) == 2


def test_a_stopped_run_keeps_its_rows_and_a_rerun_takes_up_there(test, rows, passes, monkeypatch):
    evaluations, compute = [], ExactCocoMetric.compute_metrics

    def stopped(self, results):
        evaluations.append(1)
        if len(evaluations) == 3:
            raise KeyboardInterrupt
        return compute(self, results)

    with monkeypatch.context() as patch:
        patch.setattr(ExactCocoMetric, 'compute_metrics', stopped)
        assert test('--skip', ALL) == 130
    kept = rows()
    assert list(kept) == CODES[:2]
    passes.clear()
    assert test('--skip', ALL) == 0
    assert {tuple(map(str, points)) for points in passes} == {('TTTT',)}
    assert list(rows()) == CODES and all(rows()[code] == row for code, row in kept.items())


def test_depths_that_were_tested_one_by_one_were_tested_on_the_same_draws(test, rows):
    assert test('--skip', 'FFFF') == test('--skip', 'TTTT') == 0
    super_net, base_net = rows().values()
    for metric in ('bbox_mAP', 'segm_mAP'):
        assert len(unpack(super_net[f'{metric}_resampled'])) == len(unpack(base_net[f'{metric}_resampled'])) >= 200
        assert interval_of_difference(super_net, base_net, metric) is not None


def test_only_what_is_missing_is_tested(test, rows, passes, capsys):
    assert test('--skip', 'FFFF,TTTT') == 0
    first = rows()
    passes.clear()
    assert test('--skip', ALL) == 0
    assert {tuple(map(str, points)) for points in passes} == {('TTFF',)}
    assert 'FFFF, TTTT: in ' in capsys.readouterr().out
    assert list(rows()) == CODES and all(rows()[code] == row for code, row in first.items())
    passes.clear()
    assert test('--skip', 'TTTT', options=['test_dataloader.pin_memory=False']) == 0 and not passes
    assert 'box AP' in capsys.readouterr().out  # the table nevertheless
    assert test('--skip', 'TTTT', options=['model.test_cfg.rcnn.score_thr=0.1']) == 0 and passes
    assert list(rows()) == ['TTTT']


def test_predictions_and_pictures_asked_for_are_made_anew(test, passes, tmp_path):
    assert test('--skip', ALL) == 0
    passes.clear()
    outputs = ['--out', str(tmp_path / 'found.pkl'), '--show-dir', str(tmp_path / 'pictures')]
    assert test('--skip', ALL, *outputs, options=[f'test_evaluator.outfile_prefix={tmp_path}/results']) == 0
    assert len(passes) == 2
    found = {code: pickle.loads((tmp_path / f'found_{code}.pkl').read_bytes()) for code in CODES}
    boxes = [torch.cat([image['pred_instances']['bboxes'] for image in images]) for images in found.values()]
    assert all(len(list((tmp_path / 'pictures' / code).iterdir())) == 2 for code in CODES)
    results = [json.loads((tmp_path / f'results_{code}.bbox.json').read_text()) for code in CODES]
    assert [len(result) for result in results] == [len(box) for box in boxes]
    pictures = [mmcv.imread(str(next((tmp_path / 'pictures' / code).iterdir()))) for code in CODES]
    assert (pictures[0] != pictures[2]).any() and not torch.equal(boxes[0], boxes[2])


def test_mixed_precision(test, rows):
    assert test('--amp', '--skip', 'FFFF,TTTT') == 0
    assert list(rows()) == ['FFFF', 'TTTT'] and all(row['bbox_mAP'] is not None for row in rows().values())


@pytest.fixture
def refused(test, passes, capsys):
    """A test that ends before it begins, with one line."""

    def run(message, *arguments, **kwargs):
        passes.clear()
        capsys.readouterr()
        assert test(*arguments, **kwargs) == 2
        error = capsys.readouterr().err
        line = error.splitlines()[-1]
        assert line.startswith('error: ') and message in line and 'Traceback' not in error and not passes, error

    return run


def read(tmp_path):
    return json.loads((tmp_path / 'work/sub_nets.json').read_text())


def test_exactly_the_weights_named_are_tested(test, trained, tiny_options, tmp_path):
    """In the work folder of a resumed training, whose config says to resume from the latest checkpoint."""
    older = trained / 'iter_2.pth'
    assert test('--skip', 'TTTT', checkpoint=older) == 0
    expected = read(tmp_path)
    (tmp_path / 'work/sub_nets.json').unlink()
    options = [*tiny_options, 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']
    argv = [DEMO_CONFIG, '--work-dir', str(tmp_path / 'work'), '--resume', str(older), *options]
    assert load_tool('train').main(argv) == 0
    dumped = tmp_path / 'work' / Path(DEMO_CONFIG).name
    cfg = Config.fromfile(dumped)
    assert cfg.resume and (tmp_path / 'work/last_checkpoint').read_text().endswith('iter_4.pth')
    assert test('--skip', 'TTTT', config=dumped, checkpoint=older, without='val_') == 0
    found = read(tmp_path)
    assert found['rows'] == expected['rows'] and found['run']['checkpoint_sha256'] == file_sha256(older)


def test_outputs_are_checked_before_the_test(refused, tmp_path, shapes, monkeypatch):
    (tmp_path / 'file').write_text('kept')
    (tmp_path / 'found.pkl').mkdir()
    refused('found.pkl is a folder: give the name of a file', '--out', str(tmp_path / 'found.pkl'))
    refused('cannot write to', '--out', str(tmp_path / 'file' / 'found.pkl'))
    refused('cannot write to', '--show-dir', str(tmp_path / 'file'))
    prefix = f'test_evaluator.outfile_prefix={tmp_path}/file/results'
    refused('cannot write to', options=[prefix])
    before = {path: path.read_bytes() for path in (shapes / 'val').iterdir()}
    refused('holds images of the data set', '--show-dir', str(shapes / 'val'))
    refused('holds images of the data set', '--show-dir', str(shapes / 'val'), '--skip', 'all')
    (tmp_path / 'link').symlink_to(shapes / 'val')
    refused('holds images of the data set', '--show-dir', str(tmp_path / 'link'))
    assert {path: path.read_bytes() for path in (shapes / 'val').iterdir()} == before
    real = tempfile.TemporaryFile

    def full(dir=None, **kwargs):
        file = MagicMock(**{'__enter__.return_value.write.side_effect': OSError(errno.ENOSPC, 'No space left')})
        return file if 'elsewhere' in str(dir) else real(dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, 'TemporaryFile', full)
    refused('(No space left): give another', '--out', str(tmp_path / 'elsewhere' / 'found.pkl'))
    refused('(No space left): give another', '--show-dir', str(tmp_path / 'elsewhere'))


def test_pictures_are_painted_over_ours_alone(test, refused, tmp_path):
    pictures = tmp_path / 'pictures'
    assert test('--skip', 'TTTT', '--show-dir', str(pictures)) == 0
    assert test('--skip', 'TTTT', '--show-dir', str(pictures)) == 0  # its own
    (painted, *_) = sorted(path.name for path in pictures.glob('[!.]*'))
    (pictures / 'FFFF').mkdir()
    (pictures / 'FFFF' / painted).write_text('a picture of the user')
    refused(f'1 files that would be painted over, such as FFFF/{painted}', '--show-dir', str(pictures), '--skip', ALL)
    assert (pictures / 'FFFF' / painted).read_text() == 'a picture of the user'


def test_a_config_without_a_painter_is_given_one(test, tmp_path):
    cfg = Config.fromfile(DEMO_CONFIG)
    cfg.default_hooks.visualization = None
    cfg.dump(tmp_path / 'no_painter.py')
    assert test('--skip', 'TTTT', '--show-dir', str(tmp_path / 'p'), config=tmp_path / 'no_painter.py') == 0
    assert len(list((tmp_path / 'p').glob('*.png'))) == 2


def test_a_dump_of_predictions_is_whole_or_not_there(tmp_path, monkeypatch):
    dump = AtomicDump(out_file_path=str(tmp_path / 'found.pkl'))
    dump.compute_metrics([1])
    with pytest.raises(AttributeError):
        dump.compute_metrics([1, lambda: None])
    assert pickle.loads((tmp_path / 'found.pkl').read_bytes()) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ['found.pkl']


def test_codes_of_the_config(test, rows, refused, tmp_path):
    skips = ['test_cfg.skips=[TTTT,ffff]']
    assert test(options=skips) == 0
    assert list(rows()) == ['FFFF', 'TTTT']
    refused('--skip TTFF and test_cfg.skips=', '--skip', 'TTFF', options=skips)
    refused("'TTT' is not a skip code", options=['test_cfg.skips=TTT'])
    assert test('--skip', 'FFFF,tttt', options=skips) == 0  # the same ones
    dumped = tmp_path / 'work' / Path(DEMO_CONFIG).name
    assert 'skips' not in Config.fromfile(dumped).test_cfg or Config.fromfile(dumped).test_cfg.skips == ['TTTT', 'ffff']
    assert test('--skip', 'TTTT', config=dumped, options=['test_cfg.skips=None']) == 0
    assert test('--skip', 'FFFF', config=dumped) == 0  # a dump does not bind the next test to its codes
    assert Config.fromfile(dumped).model.backbone.skip == 'FFFF'


def test_every_image_is_tested_or_the_row_says_so(test, tmp_path, capsys):
    batches = ['test_dataloader.batch_size=4', 'test_dataloader.drop_last=True', 'test_dataloader.dataset.indices=None']
    assert test('--skip', 'TTTT', options=batches) == 0
    assert 'drop_last is switched off: every image is tested' in capsys.readouterr().out
    assert read(tmp_path)['run']['num_images'] == 6
    images = ['test_dataloader.dataset.indices=[4,1]', f'test_evaluator.outfile_prefix={tmp_path}/found']
    assert test('--skip', 'TTTT', options=images) == 0
    assert read(tmp_path)['run']['num_images'] == 2
    tested = {found['image_id'] for found in json.loads((tmp_path / 'found.bbox.json').read_text())}
    assert tested <= {2, 5}


def test_nothing_to_test(refused, tmp_path):
    for number, (section, value, message) in enumerate(
        [
            ('test_evaluator', None, 'test_evaluator'),
            ('test_evaluator', [], 'name at least one metric'),
            ('test_cfg', None, 'test_cfg'),
        ]
    ):
        cfg = Config.fromfile(DEMO_CONFIG)
        cfg[section] = value
        cfg.dump(tmp_path / f'{number}.py')
        refused(message, config=tmp_path / f'{number}.py', without='test_evaluator')
    refused('no image is left to read', options=['test_dataloader.dataset.indices=0'])


def test_the_annotations_are_parsed_once(test, parsed):
    assert test('--skip', 'TTTT') == 0
    assert parsed == [6]


def test_what_is_replaced_is_said(test, tmp_path):
    assert test('--skip', 'TTTT') == 0
    (log,) = (tmp_path / 'work').glob('2*/*.log')
    text = log.read_text()
    assert text.count('TestLoop is replaced by SubNetTestLoop') == 1
    assert text.count('CocoMetric is replaced by ExactCocoMetric') == 1


def test_a_number_is_lost_for_no_name():
    numbers = {'a/mAP': 0.5, 'b/mAP': torch.tensor(0.25), 'c/list': [1], 'c/none': float('nan'), 'c/x/y': 1, 'z': 2}
    assert _numbers(numbers) == {'mAP': 0.5, 'b/mAP': 0.25, 'none': None, 'x/y': 1, 'z': 2}


def points_in(tmp_path):
    return {str(OperatingPoint.from_row(row)): row for row in read(tmp_path)['rows']}


POINTS = ['--skip', 'FFFF,TTTT', '--sizes', '64,32', '--proposals', '20,5']


def test_points_equal_runs_of_their_own(test, tmp_path, monkeypatch):
    """Rows, costs and predictions; an image is decoded once, and a size is preprocessed once."""
    decoded, stems = [], []
    decode = mmcv.imfrombytes
    monkeypatch.setattr('mmcv.imfrombytes', lambda *args, **kwargs: (decoded.append(1), decode(*args, **kwargs))[1])
    preprocess = DetDataPreprocessor.forward
    monkeypatch.setattr(
        DetDataPreprocessor, 'forward', lambda self, *args: (stems.append(1), preprocess(self, *args))[1]
    )
    options = ['model.test_cfg.rcnn.score_thr=0.0', 'test_dataloader.num_workers=0']
    options.append('test_dataloader.persistent_workers=False')
    assert test(*POINTS, '--out', str(tmp_path / 'found.pkl'), options=options) == 0
    assert len(decoded) == 2 and len(stems) == 2 * 2
    together = points_in(tmp_path)
    names = [f'{code}@{size}/{number}' for size in (64, 32) for number in (20, 5) for code in ('FFFF', 'TTTT')]
    assert list(together) == names
    for name in (names[2], names[-1]):
        code, size, number = name.replace('@', '/').split('/')
        argv = ['--skip', code, '--sizes', size, '--proposals', number]
        file = tmp_path / f'{code}{size}{number}.pkl'
        assert test(*argv, '--out', str(file), '--work-dir', str(tmp_path / file.stem), options=options) == 0
        (alone,) = json.loads((tmp_path / file.stem / 'sub_nets.json').read_text())['rows']
        assert alone == together[name]
        shared = pickle.loads((tmp_path / f'found_{code}@{size}-{number}.pkl').read_bytes())
        for one, other in zip(pickle.loads(file.read_bytes()), shared, strict=True):
            one, other = one['pred_instances'], other['pred_instances']
            assert len(one['scores']) and one['masks'] == other['masks']
            assert all(torch.equal(one[key], other[key]) for key in ('bboxes', 'scores', 'labels'))
    gmacs = [together[name]['gmacs'] for name in names]
    assert gmacs[0] > gmacs[1] > gmacs[3] and gmacs[0] > gmacs[2] and gmacs[0] > gmacs[4]


def test_points_are_taken_up_and_own_ones_are_known(test, tmp_path, passes, capsys):
    assert test('--skip', 'TTTT') == 0  # at the config's own size and proposals
    (own,) = read(tmp_path)['rows']
    size, proposals = own['size'], own['proposals']
    passes.clear()
    argv = ['--skip', 'TTTT', '--sizes', f'{size},48', '--proposals', f'{proposals}']
    assert test(*argv) == 0
    assert [str(point) for point in passes[0]] == ['TTTT@48'] and 'TTTT: in ' in capsys.readouterr().out
    assert list(points_in(tmp_path)) == [f'TTTT@{size}/{proposals}', f'TTTT@48/{proposals}']
    passes.clear()
    assert test(*argv, '--proposals', '5') == 0
    assert [str(point) for point in passes[0]] == ['TTTT/5', 'TTTT@48/5'] and len(points_in(tmp_path)) == 4


def test_points_of_the_config(test, tmp_path, refused):
    options = ['test_cfg.sizes=[64,48]', 'test_cfg.proposals=5']
    assert test('--skip', 'FFFF', options=options) == 0
    assert list(points_in(tmp_path)) == ['FFFF@64/5', 'FFFF@48/5']
    assert test('--skip', 'FFFF', '--sizes', '48,64', options=options) == 0  # the same ones
    refused('--sizes 64 and test_cfg.sizes=[64, 48] of the config disagree', '--sizes', '64', options=options)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--sizes', '31'], 'a whole number from 32 to'),
        (['--sizes', 'nan'], "but got 'nan'"),
        (['--sizes', '64,'], "but got ''"),
        (['--sizes', '-64'], "but got '-64'"),
        (['--sizes', '10000000'], 'but got 10000000'),
        (['--proposals', '0'], 'but got 0'),
        (['--proposals', '10.5'], "but got '10.5'"),
    ],
)
def test_points_that_are_no_points(refused, arguments, message):
    refused(message, *arguments)


def test_a_size_that_does_not_fit_is_one_line_and_the_others_are_kept(test, tmp_path, capsys, monkeypatch):
    forward = AdaptiveDepthResNet.forward

    def small(self, x, *args, **kwargs):
        if x.shape[-1] > 96 and x.any():  # counting runs on zeros
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(AdaptiveDepthResNet, 'forward', small)
    assert test('--skip', 'FFFF,TTTT', '--sizes', '64,256') == 2
    error = capsys.readouterr().err
    message = 'error: not enough memory for 2 points, at @256 (DefaultCPUAllocator'
    assert error.splitlines()[-1].startswith(message) and 'Traceback' not in error
    assert [row['size'] for row in read(tmp_path)['rows']] == [64, 64]


def test_a_size_too_large_to_be_counted_is_given_up_before_the_test(test, tmp_path, capsys, monkeypatch):
    forward = AdaptiveDepthResNet.forward

    def small(self, x, *args, **kwargs):
        if x.shape[-1] > 96:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory')
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(AdaptiveDepthResNet, 'forward', small)
    assert test('--skip', 'FFFF', '--sizes', '64,256') == 2
    assert 'not enough memory for 1 points, at @256 (CUDA out of memory)' in capsys.readouterr().err.splitlines()[-1]
    assert [row['size'] for row in read(tmp_path)['rows']] == [64]
