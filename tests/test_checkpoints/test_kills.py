"""A kill at any moment of a write leaves nothing half-written, and the next run goes on."""

import multiprocessing
import os
import signal
import sys

import pytest
import torch
from authors_resnet import authors_resnet

from adn_mmdet.checkpoints import download, get_weights, load_from_local
from adn_mmdet.checkpoints.saving import save

CHANGES = {'open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'}  # audit events of what changes a folder


def killed_at(moment, folder, action):
    """Run ``action()`` in a process that kills itself before its ``moment``-th change of a folder; say if it did."""

    def run():
        left = moment

        def count(event, arguments):
            nonlocal left
            if event in CHANGES and str(folder) in str(arguments[0]) and not (event == 'open' and arguments[1] == 'rb'):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        action()

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_files_of_tensors(tmp_path):
    """What recalibrate and convert_checkpoint write."""
    path, moment = tmp_path / 'norms.pth', 0
    save({'value': torch.tensor(0)}, path)
    while killed_at(moment, tmp_path, lambda: save({'value': torch.tensor(1)}, path)):
        assert load_from_local(path)['value'] in (0, 1)
        save({'value': torch.tensor(0)}, path)
        assert os.listdir(tmp_path) == ['norms.pth']
        moment += 1
    assert moment >= 2 and load_from_local(path)['value'] == 1


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The authors' file, which comes without a network."""
    path = tmp_path / 'weights.pth'
    torch.save({'model': authors_resnet('resnet50vd').state_dict()}, path)
    monkeypatch.setattr(download, 'fetch', lambda url, to: to.write_bytes(path.read_bytes()))


def test_get_weights(source, tmp_path):
    folder, moment = tmp_path / 'pretrained', 0
    folder.mkdir()
    while killed_at(moment, folder, lambda: get_weights('resnet50vd', folder)):
        out = download.weights_file('resnet50vd', folder)
        assert not out.exists() or load_from_local(out)['meta']['arch'] == 'resnet50vd'
        if moment % 4 == 0:  # the next run goes on with what the last one left, or after several of them
            get_weights('resnet50vd', folder)
            assert sorted(os.listdir(folder)) == [out.name, f'{out.stem}.source.sha256']
            out.unlink()
        moment += 1
    assert moment >= 8
