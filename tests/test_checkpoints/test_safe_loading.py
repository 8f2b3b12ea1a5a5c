import argparse
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fuzz
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from adn_mmdet import UserError
from adn_mmdet.checkpoints import load_from_local, safe_loading


class Crafted:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_checkpoints_of_mmengine_load(trained):
    checkpoint = CheckpointLoader.load_checkpoint(str(trained / 'iter_4.pth'), map_location='cpu')
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer) and len(history.data[0]) == 4
    assert np.isfinite(history.mean())


@pytest.mark.parametrize('call', ['os.system', 'eval', 'getattr', 'HistoryBuffer.__init__'])
def test_a_crafted_pickle_is_refused_and_nothing_in_it_runs(tmp_path, call):
    witness = tmp_path / 'witness'
    payload = {
        'os.system': Crafted(os.system, f'touch {witness}'),
        'eval': Crafted(eval, f'open({str(witness)!r}, "w")'),
        'getattr': Crafted(getattr, torch.nn.Module, '__init__'),
        'HistoryBuffer.__init__': Crafted(getattr, HistoryBuffer, '__init__'),
    }[call]
    path = tmp_path / 'crafted.pth'
    torch.save({'state_dict': {}, 'meta': payload}, path)
    with pytest.raises(UserError, match='was refused: it holds .*could run code; nothing in it has run'):
        load_from_local(path)
    with pytest.raises(UserError, match='was refused'):  # the way of --resume, init_detector and DetInferencer
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert not witness.exists()


@pytest.mark.parametrize('keep', [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_file_is_said_to_be_incomplete(tmp_path, trained, keep):
    content = (trained / 'iter_4.pth').read_bytes()
    path = tmp_path / 'cut.pth'
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match='use the previous one'):
        load_from_local(path)


@pytest.mark.parametrize(
    'content', [b'<html>404</html>', b'\x80\x02.', pickle.dumps([1])], ids=['html', 'pickle', 'list']
)
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match='other.pth'):
        load_from_local(path)


def test_other_contents(tmp_path):
    with pytest.raises(UserError, match='a checkpoint is given by its path, but got None'):
        load_from_local(None)
    with pytest.raises(UserError, match='there is no checkpoint .*none.pth'):
        load_from_local(tmp_path / 'none.pth')
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(UserError, match='holds a list, not a checkpoint'):
        load_from_local(tmp_path / 'list.pth')
    with zipfile.ZipFile(tmp_path / 'archive.pth', 'w') as archive:
        archive.writestr('readme', 'no weights')
    with pytest.raises(UserError, match='no checkpoint'):
        load_from_local(tmp_path / 'archive.pth')


def test_a_command_line_is_harmless(tmp_path):
    """Training scripts save their arguments; what a Namespace holds must be on the allow-list itself."""
    path = tmp_path / 'script.pth'
    torch.save({'args': argparse.Namespace(lr=0.1, skip_cfg=[True])}, path)
    assert load_from_local(path)['args'] == argparse.Namespace(lr=0.1, skip_cfg=[True])
    torch.save({'args': argparse.Namespace(lr=Crafted(os.system, f'touch {tmp_path}/witness'))}, path)
    with pytest.raises(UserError, match='was refused: it holds posix.system'):
        load_from_local(path)
    assert not (tmp_path / 'witness').exists()


def test_trust_says_what_is_missing(tmp_path):
    path = tmp_path / 'foreign.pth'
    path.write_bytes(b'cno_such_module\nThing\n.')
    with pytest.raises(UserError, match='foreign.pth'):
        load_from_local(path)
    with pytest.raises(UserError, match=r"no checkpoint at all \(No module named 'no_such_module'\)"):
        load_from_local(path, trust=True)


def test_damaged_files_are_refused_or_hold_what_was_saved(tmp_path):
    outcomes = fuzz.checkpoints(300, seed=0, folder=tmp_path)
    assert outcomes.total() == 300 and min(outcomes.values()) > 10


def test_pickles_whose_checksum_fits_and_odd_contents(tmp_path):
    assert fuzz.pickles(100, seed=0, folder=tmp_path).total() == 100
    assert fuzz.contents(8, seed=0, folder=tmp_path).total() == 8


def test_a_flipped_weight_is_named(tmp_path):
    path, weights = tmp_path / 'weights.pth', torch.full((100,), 0.5)
    torch.save({'state_dict': {'conv.weight': weights}}, path)
    content = path.read_bytes()
    place = content.index(weights.numpy().tobytes()) + 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match=r'weights.pth is damaged: weights/data/0 in it is not what was saved: use the'):
        load_from_local(path)


def test_a_weight_marked_as_a_folder_is_damage(tmp_path):
    """torch reads it as memory that nothing was written to; no checksum covers the mark."""
    path = tmp_path / 'weights.pth'
    torch.save({'conv.weight': torch.ones(100)}, path)
    content = bytearray(path.read_bytes())
    entry = next(
        place
        for place in range(len(content))
        if content[place : place + 4] == b'PK\x01\x02' and content[place + 46 :].startswith(b'weights/data/0')
    )
    content[entry + 38] ^= 0x10
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)['conv.weight'], torch.ones(100))
    with pytest.raises(UserError, match='weights/data/0 in it is not what was saved'):
        load_from_local(path)


def test_checksums_are_compared_once_a_file(tmp_path, monkeypatch):
    path, calls = tmp_path / 'weights.pth', []
    testzip = zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, 'testzip', lambda archive: calls.append(1) or testzip(archive))
    torch.save({'weight': torch.ones(1)}, path)
    for changed, expected in ((1e9, 1), (1e9 + 1, 2)):
        os.utime(path, (changed, changed))
        for _ in range(3):
            load_from_local(path)
        assert len(calls) == expected
    os.utime(path)  # a change within the same tick of the clock would not show
    load_from_local(path), load_from_local(path)
    assert len(calls) == 4


def test_the_old_format_is_said_to_have_no_checksums(tmp_path, monkeypatch):
    path, logged = tmp_path / 'old.pth', []
    monkeypatch.setattr(safe_loading, 'print_log', lambda message, *_: logged.append(message))
    torch.save({'weight': torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert load_from_local(path)['weight'] == 1
    assert logged == [f'{path}: the format of torch < 1.6 has no checksums to notice damage by']


@pytest.fixture
def methods():
    """HistoryBuffer's methods, restored afterwards."""
    before = dict(HistoryBuffer._statistics_methods)
    yield
    HistoryBuffer._statistics_methods.clear()
    HistoryBuffer._statistics_methods.update(before)


def test_a_checkpoint_cannot_rebind_methods_of_the_process(tmp_path, monkeypatch, methods):
    history, path = HistoryBuffer([1.0, 3.0], [1, 1]), tmp_path / 'crafted.pth'
    state = dict(vars(history), statistics_methods={'mean': HistoryBuffer.max}, mean=5)
    with monkeypatch.context() as patch:
        patch.setattr(HistoryBuffer, '__getstate__', lambda self: state)
        torch.save({'message_hub': {'log_scalars': {'loss': history}}}, path)
    loaded = load_from_local(path)['message_hub']['log_scalars']['loss']
    assert type(loaded) is HistoryBuffer and loaded.mean() == 2  # of 1 and 3, not their maximum
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics('mean') == 2
    loaded.update(5.0)
    assert pickle.loads(pickle.dumps(loaded)).mean() == 3


HISTORY = b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n'


@pytest.mark.parametrize(
    'content',
    [HISTORY + b'N}X\x04\x00\x00\x00meanK\x01s\x86b.', HISTORY + b')R.', HISTORY + b')\x81}X\x01\x00\x00\x00aK\x01sb.'],
    ids=['attributes of the class', 'a call', 'another state'],
)
def test_what_mmengine_does_not_save_of_a_history_is_refused(content, tmp_path, methods):
    mean, path = HistoryBuffer.mean, tmp_path / 'crafted.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match='crafted.pth is .*no checkpoint'):
        load_from_local(path)
    assert HistoryBuffer.mean is mean


def test_what_was_allowed_elsewhere_is_not_allowed_here(tmp_path):
    """As mmengine's fork allows getattr itself, with which a pickle reaches anything."""
    path = tmp_path / 'crafted.pth'
    torch.save({'meta': Crafted(getattr, torch.nn.Module, '__init__')}, path)
    with torch.serialization.safe_globals([getattr, torch.nn.Module, argparse.ArgumentParser]):
        with pytest.raises(UserError, match='was refused: it holds'):
            load_from_local(path)
        assert argparse.ArgumentParser in torch.serialization.get_safe_globals()


def test_threads_load_at_once(tmp_path):
    torch.save(fuzz.a_checkpoint(), tmp_path / 'weights.pth')
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_from_local, [tmp_path / 'weights.pth'] * 40))
    assert all(fuzz.same(content, loaded[0]) for content in loaded)


UNSOUND = {
    'complex': (torch.ones(2, dtype=torch.complex64), 'is of torch.complex64, not of real floating numbers'),
    'bool': (torch.ones(2, dtype=torch.bool), 'is of torch.bool'),
    'float8': (torch.ones(2).to(torch.float8_e4m3fn), 'is of torch.float8_e4m3fn'),
    'sparse': (torch.ones(2).to_sparse(), 'is a sparse tensor, not a dense one'),
    'quantised': (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), 'is a quantised tensor'),
    'meta': (torch.ones(2, device='meta'), 'is a meta tensor'),
    'NaN': (torch.tensor([1, torch.nan]), 'holds NaN or infinity'),
    'infinity': (torch.tensor([1, -torch.inf], dtype=torch.float16), 'holds NaN or infinity'),
    'variance': (torch.tensor([1, -1e-9]), 'holds variances below zero'),
}


@pytest.mark.parametrize('wrap', [dict, lambda **weights: dict(state_dict=weights, meta={})], ids=['bare', 'mmengine'])
@pytest.mark.parametrize('kind', UNSOUND)
@pytest.mark.filterwarnings('ignore')  # torch is about to drop some of them
def test_tensors_that_no_training_leaves(kind, wrap, tmp_path):
    value, message = UNSOUND[kind]
    path = tmp_path / 'weights.pth'
    torch.save(wrap(**{'bn.running_var': value, 'bn.weight': torch.ones(2), 'bn.count': torch.tensor(1)}), path)
    with pytest.raises(UserError, match=rf'weights.pth: bn.running_var {message}.* \(1 such weights\): use an earlier'):
        load_from_local(path)
    with pytest.raises(UserError, match=message):  # the way of load_from, init_cfg and --resume
        CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def test_tensors_anywhere_in_a_file_that_holds_itself(tmp_path):
    path, content = tmp_path / 'loop.pth', {'optimizer': {'state': {0: {'step': torch.tensor(1)}}}}
    content['self'] = content
    torch.save(content, path)
    assert load_from_local(path).keys() == content.keys()
    content['optimizer']['state'][0]['momentum_buffer'] = torch.tensor(torch.nan)
    torch.save(content, path)
    with pytest.raises(UserError, match='state.0.momentum_buffer holds NaN'):
        load_from_local(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'PK')

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr('builtins.open', refuse)  # root, who may run the tests, reads anything
    with pytest.raises(UserError, match=r'cannot read .*weights.pth \(Permission denied\)'):
        load_from_local(path)


def test_names_out_of_a_file_are_one_line(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save({'line\nline\x1b[2J': torch.tensor(torch.nan)}, path)
    with pytest.raises(UserError, match=r"weights.pth: 'line\\nline\\x1b\[2J' holds NaN"):
        load_from_local(path)


def test_numbers_of_numpy_are_what_was_saved(tmp_path):
    path = tmp_path / 'numbers.pth'
    arrays = [np.arange(6.0).reshape(2, 3).T, np.arange(3, dtype='>i2'), np.zeros(0, 'f4'), np.array([True, False])]
    content = {'arrays': arrays, 'scalars': [np.float64(1.5), np.int64(-3), np.bool_(True), np.float32(0.1)]}
    for _ in range(2):  # saved again they are numpy's own
        torch.save(content, path)
        loaded = load_from_local(path)
        for one, other in zip(content['arrays'], loaded['arrays'], strict=True):
            assert isinstance(other, np.ndarray) and np.array_equal(one, other)
            assert one.dtype.type is other.dtype.type  # numpy itself unpickles in this machine's order of bytes
        for one, other in zip(content['scalars'], loaded['scalars'], strict=True):
            assert type(one) is type(other) and one == other
        content = loaded
    assert b'adn_mmdet' not in path.read_bytes()


@pytest.mark.parametrize('values', [np.array(['text']), np.array([None]), np.zeros(1, [('a', 'f4')])], ids=str)
def test_arrays_of_something_else_than_numbers_are_refused(values, tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'values': values}, path)
    with pytest.raises(UserError, match='other.pth is no checkpoint'):
        load_from_local(path)


def test_a_dtype_takes_no_flags_from_a_file(tmp_path):
    """numpy's own prints errors from deep inside it for these, and reads as it likes."""
    path, history = tmp_path / 'crafted.pth', np.array([1.0, 2.0])
    torch.save({'values': history}, path, pickle_protocol=2, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    plain = b'\xff' * 4 + b'J' + b'\xff' * 4 + b'K\x00t'  # two sizes of -1, then the flags
    assert content.count(plain) == 1
    path.write_bytes(content.replace(plain, plain[:-2] + b'\x1bt'))
    assert load_from_local(path)['values'].tolist() == [1, 2]
