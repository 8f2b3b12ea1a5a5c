import json
import os
import re
import signal
import sys
import time
from multiprocessing import get_context

import pytest

from adn_mmdet import UserError
from adn_mmdet.files import left_partials, locked, partial_path, read_json, write_atomically, write_json

PROCESSES = get_context('fork')


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fails_to_write(path, content, monkeypatch, where, error):
    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        patch.setattr(os, where, fail)
        write_atomically(path, content)
    assert getattr(caught.value, 'filename', str(path)) == str(path)  # not that of the part


@pytest.mark.parametrize('where', ['fsync', 'replace'])
@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()], ids=['full', 'Ctrl-C'])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path, monkeypatch, where, error):
    write_atomically(tmp_path / 'file', b'old')
    fails_to_write(tmp_path / 'file', b'new', monkeypatch, where, error)
    assert (tmp_path / 'file').read_bytes() == b'old' and names(tmp_path) == ['file']


def write_often(path, letter):
    for _ in range(100):
        write_atomically(path, letter * 100_000)


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    writers = [PROCESSES.Process(target=write_often, args=(tmp_path / 'file', letter)) for letter in (b'a', b'b')]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / 'file').exists():
            content = (tmp_path / 'file').read_bytes()
            assert len(content) == 100_000 and len(set(content)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0] and names(tmp_path) == ['file']


def test_what_killed_writers_left_is_told_from_what_is_being_written(tmp_path):
    dead = PROCESSES.Process(target=lambda: partial_path(tmp_path / 'a.json').touch())
    dead.start()
    dead.join()
    mine, of_another_host = partial_path(tmp_path / 'a.json'), tmp_path / 'a.json.elsewhere-1-00ff.partial'
    for path in (mine, of_another_host, tmp_path / 'b.pth.partial', tmp_path / 'a.json'):
        path.touch()
    left = left_partials(tmp_path)
    assert len(left) == 2 and tmp_path / 'b.pth.partial' in left and mine not in left and of_another_host not in left
    assert left_partials(tmp_path, 'b*') == [tmp_path / 'b.pth.partial']
    os.utime(of_another_host, times=(time.time() - 7200,) * 2)
    assert of_another_host in left_partials(tmp_path)


def write_for_ever(path):
    while True:
        write_json(path, ['x' * 10**6])


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / 'a[1].json'
    while not left_partials(tmp_path):
        writer = PROCESSES.Process(target=write_for_ever, args=(path,))
        writer.start()
        while not any(tmp_path.glob('*.partial')):
            assert writer.is_alive()
        writer.kill()
        writer.join()
    other = partial_path(path)  # of a writer that runs
    other.touch()
    write_json(path, ['y'])
    assert names(tmp_path) == sorted([path.name, other.name]) and json.loads(path.read_text()) == ['y']


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_lock_names_its_owner(tmp_path, kind):
    path = tmp_path if kind == 'folder' else tmp_path / 'rows.json'
    owner = rf'{re.escape(str(path))} is in use by process {os.getpid()} on \S+: come back later'
    with locked(path), pytest.raises(UserError, match=owner):
        with locked(path, seconds=0, remedy='come back later'):
            pass
    with locked(path, seconds=0):  # released
        pass


def hold(folder, pipe):
    with locked(folder, seconds=0):
        worker = os.fork()  # such as that of a data loader, which outlives its parent
        if worker:
            pipe.send(worker)
        time.sleep(60)


def test_a_killed_owner_leaves_nothing_locked(tmp_path):
    here, there = PROCESSES.Pipe()
    owner = PROCESSES.Process(target=hold, args=(tmp_path, there))
    owner.start()
    worker = here.recv()
    try:
        with pytest.raises(UserError, match=f'is in use by process {owner.pid} on '), locked(tmp_path, seconds=0):
            pass
        owner.kill()
        owner.join()
        os.kill(worker, 0)  # is there
        with locked(tmp_path, seconds=0):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_is_written_is_what_is_read(tmp_path):
    content = {'name': 'Straße ×', 'smiley': '😀', 'number': 0.1, 'nothing': None}
    write_json(tmp_path / 'a.json', content)
    assert read_json(tmp_path / 'a.json', 'remedy') == content
    (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf' + json.dumps(content).encode())  # escapes, and a byte order mark
    assert read_json(tmp_path / 'a.json', 'remedy') == content
    write_json(tmp_path / 'a.json', {'name': 'odd\udcff'})  # of a file's name that is no UTF-8
    assert read_json(tmp_path / 'a.json', 'remedy') == {'name': 'odd?'}
    write_json(tmp_path / 'a.json', {'numbers': [float('inf'), -float('inf'), float('nan'), 1e308]})
    assert read_json(tmp_path / 'a.json', 'remedy') == {'numbers': [None, None, None, 1e308]}
    assert names(tmp_path) == ['a.json']


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'is empty'),
        (b'\xef\xbb\xbf \n', 'is empty'),
        (b'{"a": 1', r'is not whole JSON \(.*char 7'),
        (b'[]', 'holds no JSON object'),
        ('{"a": 1}'.encode('utf-16'), 'it is not UTF-8 text'),
        ('{"a": 1}'.encode('utf-16-le'), 'is not whole JSON'),
        (b'\x80\x04}.', 'it is not UTF-8 text'),
        (b'{"a": ' * 100_000, 'is nested too deeply'),
        (b'{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}', 'is nested too deeply'),
        (b'{"a": NaN}', 'it holds NaN'),
        (b'{"a": [-Infinity]}', 'it holds -Infinity'),
        (b'{"a": [{"b": "\\u0000"}]}', 'null byte or a lone surrogate'),
        (b'{"a\\u0000": 1}', 'null byte or a lone surrogate'),
        (b'{"a": "x\\uD83D"}', 'null byte or a lone surrogate'),
        (b'{"a": "\xed\xa0\xbd"}', 'it is not UTF-8 text'),
        (b'{"a": "\x00"}', 'is not whole JSON'),
        pytest.param(b'{"a": ' + b'9' * 5000 + b'}', 'is not whole JSON', marks=pytest.mark.skipif(
            not hasattr(sys, 'get_int_max_str_digits'), reason='this Python reads numbers of any length')),
    ],
)  # fmt: skip
def test_json_that_is_not_sound_is_one_line(tmp_path, content, reason):
    path = tmp_path / 'a.json'
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'{reason}.*: download it again') as caught:
        read_json(path, 'download it again')
    assert str(path) in str(caught.value) and '\n' not in str(caught.value) and len(str(caught.value)) < 300


def test_no_file_and_a_folder(tmp_path):
    for path, reason in ((tmp_path / 'none', 'No such file'), (tmp_path, 'Is a directory')):
        with pytest.raises(UserError, match=f'cannot read .*{reason}.*: remedy'):
            read_json(path, 'remedy')
