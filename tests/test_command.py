"""How a script ends, whatever happens in it."""

import io
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from _command import command
from tiny import ROOT

from adn_mmdet import UserError


def ended(error, capsys):
    @command
    def main(argv=None):
        raise error

    code = main([])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    'error, code, line',
    [
        (UserError('give another'), 2, 'error: give another\n'),
        (KeyboardInterrupt(), 130, 'stopped by Ctrl-C\n'),
        (OSError(28, 'No space left on device', 'x'), 2, 'error: cannot write x (No space left on device): make room'),
        (MemoryError(), 2, 'error: not enough memory'),
        (KeyError('a'), 2, 'error: KeyError: a ('),
        (UserError('\x1b[31mred \ud800'), 2, 'error: ?[31mred ?\n'),
    ],
)
def test_one_line_and_a_code(error, code, line, capsys):
    ended_with, printed = ended(error, capsys)
    assert ended_with == code and printed.startswith(line) and printed.count('\n') == 1


def test_the_traceback_on_request(capsys, monkeypatch):
    monkeypatch.setenv('ADN_DEBUG', '1')
    _, printed = ended(KeyError('a'), capsys)
    assert 'Traceback' in printed and printed.splitlines()[-1].startswith('error: KeyError')


def test_terminals_that_know_few_letters(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, 'ascii'))

    @command
    def main(argv=None):
        print('96×96 – … é ≥ 中')

    assert main([]) == 0
    assert written.getvalue() == b'96x96 - ... e >= ?\n'


def test_names_that_no_terminal_can_print(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, 'utf-8'))

    @command
    def main(argv=None):
        print('× \ud800')

    assert main([]) == 0
    assert written.getvalue() == '× ?\n'.encode()


def test_a_full_disk_behind_the_output(monkeypatch, capsys):
    with open('/dev/full', 'w') as full, monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', full)

        @command
        def main(argv=None):
            print('lost')

        assert main([]) == 2
    assert 'No space left on device' in capsys.readouterr().err


def test_ctrl_c_ends_a_script_in_one_line(tmp_path):
    command_line = [
        sys.executable,
        '-W',
        'ignore',
        str(ROOT / 'tools' / 'make_shapes.py'),
        'out',
        '--num-train',
        '99999',
    ]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell runs in the background ignores it
    process = subprocess.Popen(command_line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        while not list(tmp_path.glob('out/*/train/*.png')) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and error.splitlines()[-1] == 'stopped by Ctrl-C' and 'Traceback' not in error
    assert not list((tmp_path / 'out').iterdir())
