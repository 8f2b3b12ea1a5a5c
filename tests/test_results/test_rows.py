import json
import math
import os
from dataclasses import fields
from multiprocessing import get_context

import fuzz
import pytest

from adn_mmdet import UserError
from adn_mmdet.cost.latency import LatencyRow
from adn_mmdet.results.rows import POINT, TIMES, add_row, held_rows, of_weights, point_of, read_latency, read_sub_nets

RUN = dict(
    name='net', checkpoint_sha256='a', annotations_sha256=None, classes=['cell'], num_images=3, input_size=[32, 64]
)
ROW = dict(skip='FT', size=64, proposals=None, bbox_mAP=0.5, bbox_mAP_l=None, gmacs=1.5)
SUB_NETS = dict(schema=2, run=RUN, rows=[ROW, ROW | dict(skip='TT')])
TIMED = dict(name='net', checkpoint_sha256=None, device='CPU', threads=1, batch_size=1, input_size=[32, 64],
             amp=False, channels_last=False, compile=False)  # fmt: skip
LATENCY = dict(schema=2, kind='latency', run=TIMED, rows=[dict(skip=None, size=64, proposals=9, ms=2.5)])


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_is_read(tmp_path):
    write(tmp_path / 'sub_nets.json', SUB_NETS | dict(other_runs=[dict(run=RUN | dict(num_images=2), rows=[ROW])]))
    for path in (tmp_path, tmp_path / 'sub_nets.json'):
        results, other = read_sub_nets(path)
        assert (results.path, results.said, results.rows, results.name) == (path, RUN, SUB_NETS['rows'], 'net')
        assert (results.run.classes, results.run.input_size, results.run.norms_sha256) == (['cell'], [32, 64], None)
        assert (other.run.num_images, other.rows) == (2, [ROW])
    latency = read_latency(write(tmp_path / 'latency.json', LATENCY))
    assert (latency.said, latency.rows, latency.run.rounds) == (TIMED, LATENCY['rows'], 0)


def without(part, key):
    return {name: value for name, value in part.items() if name != key}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'is empty: write it with tools/test.py'),
        ('{"schema": 1,', r'is not whole JSON \(.*line 1 column 14'),
        ([], 'holds no JSON object'),
        (LATENCY, 'is not a file of tools/test.py'),
        ({}, 'is not a file of tools/test.py'),
        (without(SUB_NETS, 'rows'), 'is not a file of tools/test.py'),
        (SUB_NETS | dict(schema=3), 'has schema 3, but 1 and 2 are read'),
        (SUB_NETS | dict(run=3), 'run is no JSON object'),
        (SUB_NETS | dict(rows=[]), 'has no rows'),
        (SUB_NETS | dict(rows=[3]), r'rows\[0\] is no JSON object'),
        (SUB_NETS | dict(rows=[ROW, ROW]), r"the skip codes \['FT', 'FT'\]"),
        (SUB_NETS | dict(rows=[ROW, ROW | dict(skip='F')]), r"the skip codes \['FT', 'F'\]"),
        *((SUB_NETS | dict(run=without(RUN, key)), f'run lacks {key}') for key in RUN),
        *((SUB_NETS | dict(run=RUN | {key: value}), f'run has the {key} ') for key, value in dict(
            name=None, checkpoint_sha256=1, annotations_sha256=1, classes=[1], num_images=0, input_size=[32]).items()),
        *((SUB_NETS | dict(rows=[ROW, without(ROW, key)]), rf'rows\[1\] lacks {key}') for key in ('skip', 'gmacs')),
        *((SUB_NETS | dict(rows=[ROW | {key: value}]), rf'rows\[0\] has the {key} ') for key, value in dict(
            skip='ft', size=0, proposals=2.5, gmacs='much', bbox_mAP='good', bbox_mAP_l=[]).items()),
        (SUB_NETS | dict(rows=[ROW | dict(bbox_mAP_l=float('nan'))]), 'it holds NaN'),
        (SUB_NETS | dict(rows=[None]), r'rows\[0\] is no JSON object'),
        (SUB_NETS | dict(rows=[ROW | dict(bbox_mAP=38.3)]), r'rows\[0\] has the bbox_mAP 38.3'),  # in percent
        (SUB_NETS | dict(rows=[ROW | {'a\nb': 'c'}]), r'rows\[0\] has the a\?b "c"'),
        (SUB_NETS | dict(run=RUN | dict(num_images=10**400)), 'run has the num_images 1000'),
        (SUB_NETS | dict(run=RUN | dict(versions=[[[[]]]])), 'run holds .* too large, or too many levels'),
        (json.dumps(SUB_NETS).replace('1.5', '1e400'), r'rows\[0\] holds a number that is too large'),
        (SUB_NETS | dict(other_runs={}), 'other_runs is no list'),
        (SUB_NETS | dict(other_runs=[3]), r'it has no other_runs\[0\].rows'),
        (SUB_NETS | dict(other_runs=[dict(run=RUN, rows=[{}])]), r'other_runs\[0\].rows\[0\] lacks skip'),
    ],
)  # fmt: skip
def test_no_results(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_sub_nets(write(tmp_path / 'sub_nets.json', content))
    assert str(tmp_path / 'sub_nets.json') in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (SUB_NETS, 'is not a file of tools/benchmark.py'),
        (LATENCY | dict(schema=0), 'has schema 0, but 1 and 2 are read'),
        *((LATENCY | dict(run=without(TIMED, key)), f'run lacks {key}') for key in TIMED),
        (LATENCY | dict(run=TIMED | dict(amp='no')), 'run has the amp "no"'),
        (LATENCY | dict(rows=[dict(skip=None)]), r'rows\[0\] lacks ms'),
        (LATENCY | dict(rows=[dict(skip=None, ms=0)]), r'rows\[0\] has the ms 0'),
    ],
)
def test_no_latency(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_latency(write(tmp_path / 'latency.json', content))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match='cannot read .*sub_nets.json .No such file.*: write it with tools/test.py'):
        read_sub_nets(tmp_path)
    with pytest.raises(UserError, match='Is a directory'):
        read_latency(tmp_path)
    (tmp_path / 'sub_nets.json').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UserError, match='it is not UTF-8 text'):
        read_sub_nets(tmp_path)


def row(skip, ap=0.5):
    return dict(ROW, skip=skip, bbox_mAP=ap)


def codes_in(folder):
    return [
        (results.said['checkpoint_sha256'], [row['skip'] for row in results.rows]) for results in read_sub_nets(folder)
    ]


def test_rows_are_added_and_replaced_beside_those_of_other_runs(tmp_path):
    add_row(tmp_path, RUN, row('TT'))
    add_row(tmp_path, RUN, row('FF', 0.1))
    rows = add_row(tmp_path, RUN, row('FF', 0.12345678901234))
    assert [entry['skip'] for entry in rows] == ['FF', 'TT'] and rows == held_rows(tmp_path, RUN)
    written = json.loads((tmp_path / 'sub_nets.json').read_text())
    assert written == dict(schema=2, run=RUN, rows=rows) and rows[0]['bbox_mAP'] == 0.12345678901234
    assert len(add_row(tmp_path, RUN | dict(name='moved', config='there'), row('FT'))) == 3
    other = RUN | dict(checkpoint_sha256='b')
    assert held_rows(tmp_path, other) == [] and len(add_row(tmp_path, other, row('TF'))) == 1
    assert codes_in(tmp_path) == [('b', ['TF']), ('a', ['FF', 'FT', 'TT'])]
    assert len(add_row(tmp_path, RUN, row('TF'))) == 4
    assert codes_in(tmp_path) == [('a', ['FF', 'FT', 'TF', 'TT']), ('b', ['TF'])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.sub_nets.json.lock', 'sub_nets.json']


def test_rows_of_points_are_told_apart_and_in_order(tmp_path):
    points = [('TT', 32, 9), ('FF', 32, 9), ('FF', 64, 3), ('FF', 64, 9), ('FF', 64, 9), ('TT', 64, 9)]
    for number, (skip, size, proposals) in enumerate(points, 1):
        add_row(tmp_path, RUN, row(skip, number / 10) | dict(size=size, proposals=proposals))
    rows = read_sub_nets(tmp_path)[0].rows
    expected = [('FF', 64, 9), ('TT', 64, 9), ('FF', 64, 3), ('FF', 32, 9), ('TT', 32, 9)]
    assert list(map(point_of, rows)) == expected and rows[0]['bbox_mAP'] == 0.5


def test_rows_of_schema_1_are_those_at_the_configs_own_size_and_proposals(tmp_path):
    old = [without(without(row, 'size'), 'proposals') for row in SUB_NETS['rows']]
    other = dict(run=RUN | dict(num_images=2), rows=old)
    write(tmp_path / 'sub_nets.json', dict(schema=1, run=RUN, rows=old, other_runs=[other]))
    assert list(map(point_of, read_sub_nets(tmp_path)[0].rows)) == [('FT', None, None), ('TT', None, None)]
    run = RUN | dict(size=64, proposals=9)
    assert list(map(point_of, held_rows(tmp_path, run))) == [('FT', 64, 9), ('TT', 64, 9)]
    add_row(tmp_path, run, row('TT') | dict(size=64, proposals=9, bbox_mAP=0.1))
    mine, others = read_sub_nets(tmp_path)
    assert (mine.run.size, mine.run.proposals) == (64, 9) and [r['bbox_mAP'] for r in mine.rows] == [0.5, 0.1]
    assert json.loads((tmp_path / 'sub_nets.json').read_text())['other_runs'] == [other] and len(others.rows) == 2


def test_what_is_not_finite_is_null(tmp_path):
    add_row(tmp_path, RUN, row('FF', math.inf) | dict(bbox_mAP_l=math.nan))
    assert read_sub_nets(tmp_path)[0].rows == [row('FF', None)]


CODES = [f'{number:04b}'.replace('0', 'F').replace('1', 'T') for number in range(16)]


def add_all(folder, run):
    for code in CODES:
        add_row(folder, run, row(code))


def test_processes_at_one_file_lose_no_row(tmp_path):
    """Two of each run: they add the same rows, as the depths of one list on two GPUs could be."""
    runs = [RUN | dict(checkpoint_sha256=name) for name in 'aabb']
    processes = [get_context('fork').Process(target=add_all, args=(tmp_path, run)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(codes_in(tmp_path)) == [('a', CODES), ('b', CODES)]
    assert not any(path.name.endswith('.partial') for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (SUB_NETS | dict(schema=3), 'has schema 3, but 1 and 2 are read'),
        (LATENCY, 'is not a file of tools/test.py'),
        (SUB_NETS | dict(rows=[without(ROW, 'skip')]), r'rows\[0\] lacks skip'),
        ('', 'is empty'),
        ('{"schema": 1,', 'is not whole JSON'),
        ([], 'holds no JSON object'),
    ],
)
def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path, content, message):
    before = write(tmp_path / 'sub_nets.json', content).read_bytes()
    for function, arguments in ((held_rows, ()), (add_row, (row('FF'),))):
        with pytest.raises(UserError, match=f'{message}.* remove it, or give another work folder'):
            function(tmp_path, RUN, *arguments)
    assert (tmp_path / 'sub_nets.json').read_bytes() == before


def test_a_full_disk_loses_no_row(tmp_path, monkeypatch):
    add_row(tmp_path, RUN, row('FF'))

    def full(*arguments):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(os, 'fsync', full)
        add_row(tmp_path, RUN, row('TT'))
    assert held_rows(tmp_path, RUN) == [row('FF')] and len(add_row(tmp_path, RUN, row('TT'))) == 2


def test_the_run_of_some_weights(tmp_path):
    def message(sha256):
        with pytest.raises(UserError, match='test the weights that are to run') as caught:
            of_weights(read_sub_nets(tmp_path), sha256)
        return str(caught.value)

    add_row(tmp_path, RUN | dict(norms_sha256='0'), row('FF', 0.1))
    assert 'was measured with recalibrated norms' in message('a')
    add_row(tmp_path, RUN | dict(checkpoint_sha256='b'), row('FF', 0.2))
    assert 'was measured with other weights' in message('a')
    add_row(tmp_path, RUN, row('FF', 0.3))
    add_row(tmp_path, RUN | dict(num_images=2), row('FF', 0.4))  # a quick look
    add_row(tmp_path, RUN | dict(norms_sha256='0'), row('TT', 0.5))
    assert of_weights(read_sub_nets(tmp_path), 'a').rows == [row('FF', 0.3)]


def test_what_a_latency_row_adds():
    assert {*POINT, *TIMES} == {field.name for field in fields(LatencyRow)}


def test_files_that_are_damaged_are_refused_in_one_line_or_hold_sound_rows(tmp_path):
    outcomes = fuzz.results(150, seed=0, folder=tmp_path)
    assert outcomes['refused'] > 100 and outcomes['used'] > 100
