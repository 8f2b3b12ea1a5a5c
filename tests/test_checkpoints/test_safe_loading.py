import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from adn_mmdet import UserError
from adn_mmdet.checkpoints import load_from_local


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
