import json

import pytest

from adn_mmdet import UserError
from adn_mmdet.results.rows import read_latency, read_sub_nets

RUN = dict(
    name='net', checkpoint_sha256='a', annotations_sha256=None, classes=['cell'], num_images=3, input_size=[32, 64]
)
ROW = dict(skip='FT', bbox_mAP=0.5, bbox_mAP_l=None, gmacs=1.5)
SUB_NETS = dict(schema=1, run=RUN, rows=[ROW, ROW | dict(skip='TT')])
TIMED = dict(name='net', checkpoint_sha256=None, device='CPU', threads=1, batch_size=1, input_size=[32, 64],
             amp=False, channels_last=False, compile=False)  # fmt: skip
LATENCY = dict(schema=1, kind='latency', run=TIMED, rows=[dict(skip=None, ms=2.5)])


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_is_read(tmp_path):
    write(tmp_path / 'sub_nets.json', SUB_NETS)
    assert read_sub_nets(tmp_path) == read_sub_nets(tmp_path / 'sub_nets.json') == SUB_NETS
    assert read_latency(write(tmp_path / 'latency.json', LATENCY)) == LATENCY


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
        (SUB_NETS | dict(schema=2), 'has schema 2, but 1 is read'),
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
            skip='ft', gmacs='much', bbox_mAP='good', bbox_mAP_l=float('nan')).items()),
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
        (LATENCY | dict(schema=0), 'has schema 0, but 1 is read'),
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
    with pytest.raises(UserError, match='it is no text'):
        read_sub_nets(tmp_path)
