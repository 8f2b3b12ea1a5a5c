import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from authors_resnet import authors_resnet
from conftest import DEMO_CONFIG
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from tiny import ROOT, load_tool

from adn_mmdet import UserError
from adn_mmdet.checkpoints import download, get_weights, load_from_local
from adn_mmdet.files import file_sha256

OUT, RECORD = 'resnet50vd_adn_imagenet.pth', 'resnet50vd_adn_imagenet.source.sha256'
PAGE = b'\n<!DOCTYPE html><html>Sign in</html>'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('authors') / 'weights.pth'
    torch.save({'model': authors_resnet('resnet50vd').state_dict(), 'epoch': 1}, path)
    return path


class Handler(BaseHTTPRequestHandler):
    """Answers /whole, /cut, /garbled, /page, /other; anything else is not there."""

    def do_GET(self):
        self.server.paths.append(self.path)
        whole = self.server.content
        answers = {'/whole': whole, '/cut': whole, '/garbled': whole[:5000], '/page': PAGE, '/other': self.server.other}
        if self.path not in answers:
            return self.send_error(404)
        self.send_response(200)
        self.send_header('Content-Length', str(len(answers[self.path])))
        self.end_headers()
        self.wfile.write(answers[self.path][: 7000 if self.path == '/cut' else None])

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def server(weights, tmp_path_factory):
    other = tmp_path_factory.mktemp('other') / 'other.pth'
    torch.save(authors_resnet('resnet50').state_dict(), other)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.content, server.other, server.paths = weights.read_bytes(), other.read_bytes(), []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def serve(server, monkeypatch):
    """Let resnet50vd come from a path of the server, which forgets earlier requests."""

    def serve(path, sha256=None):
        server.paths.clear()
        url = f'http://127.0.0.1:{server.server_port}/{path}'
        monkeypatch.setitem(download.SOURCES, 'resnet50vd', download.Source(url, sha256))
        return url

    return serve


def test_sources_are_the_authors():
    assert all(
        source.url.startswith(('https://github.com/wchkang/depth/releases/download/v1.0.0/weights-', download.DRIVE))
        for source in download.SOURCES.values()
    )
    assert 'resnet101vd_kd_ce' in download.SOURCES['resnet101vd'].url


def test_download_once(serve, server, weights, tmp_path, capsys):
    main = load_tool('get_weights').main
    serve('whole', file_sha256(weights))
    for printed in (f'wrote {tmp_path / OUT}: resnet50vd, from whole of sha256', 'is there already: nothing done'):
        assert main(['resnet50vd', '--out', str(tmp_path)]) == 0
        assert printed in capsys.readouterr().out
    assert server.paths == ['/whole']
    assert sorted(os.listdir(tmp_path)) == [OUT, RECORD]
    assert (tmp_path / RECORD).read_text() == f'{file_sha256(weights)}  whole\n'
    backbone = MODELS.build(dict(type='AdaptiveDepthResNet', depth=50, avg_down=True, base_channels=8))
    backbone.load_state_dict(load_from_local(tmp_path / OUT)['state_dict'])
    x = torch.randn(1, 3, 64, 64)
    for code in ('FFFF', 'TTTT'):
        features = authors_resnet('resnet50vd').features(x, code)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(backbone.eval()(x, code), features, strict=True))


def test_a_damaged_file_is_downloaded_again(serve, server, weights, tmp_path, capsys):
    serve('whole', file_sha256(weights))
    get_weights('resnet50vd', tmp_path)
    whole = (tmp_path / OUT).read_bytes()
    (tmp_path / OUT).write_bytes(whole[: len(whole) // 2])
    assert load_tool('get_weights').main(['resnet50vd', '--out', str(tmp_path)]) == 0
    assert 'wrote' in capsys.readouterr().out and server.paths == ['/whole', '/whole']
    assert (tmp_path / OUT).read_bytes() == whole


FAILURES = {
    'cut': 'the connection was cut after 7000 of',
    'garbled': 'it is incomplete',
    'page': 'a web page came instead of the file',
    'other': 'it holds resnet50, not resnet50vd',
    'missing': 'HTTP Error 404: Not Found',
}


@pytest.mark.parametrize('path', FAILURES)
def test_failures_leave_nothing_and_say_how_to_go_on(path, serve, tmp_path, capsys):
    url = serve(path)
    assert load_tool('get_weights').main(['resnet50vd', '--out', str(tmp_path)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(error) == 1 and f'error: cannot get resnet50vd from {url} ({FAILURES[path]}' in error[0]
    assert f'convert_checkpoint.py FILE {tmp_path / OUT} --arch resnet50vd' in error[0]
    assert os.listdir(tmp_path) == []


def test_no_server_and_wrong_names(serve, monkeypatch, tmp_path):
    monkeypatch.setitem(download.SOURCES, 'resnet50vd', download.Source('http://127.0.0.1:1/x'))
    with pytest.raises(UserError, match='cannot get resnet50vd .*Connection refused.*try again'):
        get_weights('resnet50vd', tmp_path)
    with pytest.raises(UserError, match="no ADN weights 'resnet18': known are resnet50, resnet50vd, resnet101vd"):
        CheckpointLoader.load_checkpoint('adn://resnet18')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write to'):
        get_weights('resnet50vd', tmp_path / 'file' / 'folder')


def test_another_file_than_the_known_one(serve, weights, tmp_path):
    serve('whole', 'f' * 64)
    with pytest.raises(UserError, match=f'its sha256 is {file_sha256(weights)}, but that of the right file is fff'):
        get_weights('resnet50vd', tmp_path)
    assert os.listdir(tmp_path) == []


def test_another_file_than_the_first_download(serve, weights, tmp_path):
    serve('whole')
    get_weights('resnet50vd', tmp_path)
    (tmp_path / OUT).unlink()
    get_weights('resnet50vd', tmp_path)  # the same
    (tmp_path / OUT).unlink()
    serve('garbled')
    with pytest.raises(UserError, match=f'that of the right file is {file_sha256(weights)}; remove .*sha256 if'):
        get_weights('resnet50vd', tmp_path)
    assert os.listdir(tmp_path) == [RECORD]


def test_google_drive(weights, tmp_path, monkeypatch):
    """gdown stands in for itself: what it downloads is converted, and whatever it raises is one line."""
    monkeypatch.setitem(sys.modules, 'gdown', None)
    with pytest.raises(UserError, match='Google Drive needs a package: pip install gdown.*save that file yourself'):
        get_weights('resnet50', tmp_path)

    def refuse(url, output):
        raise RuntimeError('Cannot retrieve\n\tthe public link')

    monkeypatch.setitem(sys.modules, 'gdown', SimpleNamespace(download=refuse))
    with pytest.raises(UserError, match=r'drive.google.com/.* \(Cannot retrieve the public link\): try again'):
        get_weights('resnet50', tmp_path)
    assert os.listdir(tmp_path) == []

    def give(url, output):
        torch.save(authors_resnet('resnet50').state_dict(), output)

    monkeypatch.setitem(sys.modules, 'gdown', SimpleNamespace(download=give))
    assert load_from_local(get_weights('resnet50', tmp_path))['meta']['arch'] == 'resnet50'


def test_configs_ask_for_files_that_get_weights_writes():
    variables = Config.fromfile(ROOT / 'configs' / '_base_' / 'adn.py')
    assert variables.adn_r50_backbone.init_cfg.checkpoint == str(download.weights_file('resnet50'))
    for name in ('r50vd', 'r101vd'):
        scheme, _, source = variables[f'adn_{name}_backbone'].init_cfg.checkpoint.partition('://')
        assert scheme == 'adn' and source == name.replace('r', 'resnet')


def fetch_in_rank(rank, url, folder):
    os.chdir(folder)
    os.environ['LOCAL_RANK'] = str(rank)
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    download.SOURCES['resnet50vd'] = download.Source(url.replace('/whole', '/missing'))
    with pytest.raises(UserError, match='404'):
        download.load_from_adn('adn://resnet50vd')
    download.SOURCES['resnet50vd'] = download.Source(url)
    assert len(download.load_from_adn('adn://resnet50vd')['state_dict']) > 300
    dist.destroy_process_group()


def test_one_of_two_ranks_downloads(serve, server, tmp_path):
    torch.multiprocessing.start_processes(fetch_in_rank, (serve('whole'), tmp_path), nprocs=2, start_method='fork')
    assert server.paths == ['/missing', '/whole']
    assert sorted(os.listdir(tmp_path / 'pretrained')) == [OUT, RECORD]


def test_training_fetches_its_weights(serve, server, elsewhere, tiny_options, capsys, weights):
    Path('config.py').write_text(
        f"""_base_ = {DEMO_CONFIG!r}
init_cfg = dict(type='Pretrained', checkpoint='adn://resnet50vd', _delete_=True)
model = dict(backbone=dict(base_channels=8, avg_down=True, init_cfg=init_cfg))
"""
    )
    options = [*tiny_options, 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']
    serve('missing')
    assert load_tool('train').main(['config.py', '--work-dir', 'failed', *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and '404' in errors[0]
    serve('whole')
    backbone = MODELS.build(Config.fromfile('config.py').model.backbone)
    backbone.init_weights()
    held, expected = backbone.state_dict(), load_from_local(weights)['model']
    assert torch.equal(held['layer1.0.downsample.1.weight'], expected['layer1.0.downsample.0.weight'])
    assert torch.equal(held['layer3.0.bn2_skip.running_var'], expected['layer3.0.bn2_skip.running_var'])
    assert server.paths == ['/whole']
