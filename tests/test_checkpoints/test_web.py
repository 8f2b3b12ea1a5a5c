import hashlib
import multiprocessing
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mmdet.models  # noqa: F401  # registers what it has
import pytest
import torch
from conftest import DEMO_CONFIG
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, load_checkpoint
from tiny import load_tool

from adn_mmdet import UserError
from adn_mmdet.checkpoints import web


class Crafted:
    """Makes a file when it is unpickled."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return open, (self.witness, 'w')


class Handler(BaseHTTPRequestHandler):
    """Serves the files of a dict."""

    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path not in self.server.files:
            return self.send_error(404)
        content, length = self.server.files[self.path]
        self.send_response(200)
        self.send_header('Content-Length', str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Puts files on a server of this machine; torch's and mmengine's caches are in tmp_path."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.files, server.paths = {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def serve(path, content, length=None):
        content = content if isinstance(content, bytes) else saved(content, tmp_path)
        server.files[path] = content, len(content) if length is None else length
        return f'http://127.0.0.1:{server.server_port}{path}'

    serve.paths = server.paths
    yield serve
    server.shutdown()
    server.server_close()


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(web, 'print_log', lambda message, *_: lines.append(message))
    return lines


def saved(content, folder):
    torch.save(content, folder / 'saved')
    return (folder / 'saved').read_bytes()


def hashed_name(content):
    return f'/net-{hashlib.sha256(content).hexdigest()[:8]}.pth'


def files(folder):
    return sorted(path.name for path in folder.rglob('*') if path.is_file() and not path.name.endswith('.lock'))


def test_no_loader_of_mmengine_is_left():
    modules = {scheme: loader.__module__ for scheme, loader in CheckpointLoader._schemes.items()}
    assert {'', 'http://', 'https://', 'torchvision://', 'mmcls://', 'pavi://', r'(\S+\:)?s3://'} <= modules.keys()
    assert all(module.startswith('adn_mmdet.') for module in modules.values()), modules


def test_a_url_is_downloaded_once_and_its_hash_is_said(serve, log, tmp_path):
    content = saved({'state_dict': {'weight': torch.ones(2)}}, tmp_path)
    url = serve('/latest.pth?run=1', content)
    for _ in range(2):
        assert CheckpointLoader.load_checkpoint(url)['state_dict']['weight'].tolist() == [1, 1]
    assert serve.paths == ['/latest.pth?run=1']
    (path,) = (tmp_path / 'torch').rglob('latest.pth')
    assert log == [f'{url} is kept in {path}, its SHA-256 is {hashlib.sha256(content).hexdigest()}'] * 2


def test_files_of_one_name_are_told_apart(serve):
    for value in (1, 2):
        url = serve(f'/run{value}/latest.pth', {'weight': torch.tensor(value)})
        assert CheckpointLoader.load_checkpoint(url)['weight'] == value


SCHEMES = ['http', 'torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls']


@pytest.fixture
def address(serve, monkeypatch):
    """An address by any scheme, of content under a name that holds its hash."""

    def address(scheme, content):
        url = serve(hashed_name(content), content)
        if scheme == 'http':
            return url
        monkeypatch.setitem(web.LISTS, scheme, lambda: {'net': url})
        return f'{scheme}://net'

    return address


@pytest.mark.parametrize('scheme', SCHEMES)
def test_every_scheme_downloads_and_runs_nothing(scheme, address, tmp_path):
    weights = {'backbone.weight': torch.ones(2)}
    loaded = CheckpointLoader.load_checkpoint(address(scheme, saved(weights, tmp_path)))
    assert loaded.keys() == ({'weight'} if scheme == 'mmcls' else {'backbone.weight'})
    crafted = saved({**weights, 'meta': Crafted(tmp_path / 'witness')}, tmp_path)
    with pytest.raises(UserError, match=r'cannot use http://127.*\(it was refused: it holds .*nothing in it has run'):
        CheckpointLoader.load_checkpoint(address(scheme, crafted))
    assert files(tmp_path / 'torch') == [hashed_name(saved(weights, tmp_path))[1:]]  # nothing else is kept
    assert not (tmp_path / 'witness').exists()


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_crafted_file_in_the_cache_does_not_run(scheme, address, tmp_path):
    crafted = saved({'meta': Crafted(tmp_path / 'witness')}, tmp_path)
    path = tmp_path / 'torch' / 'hub' / 'checkpoints' / hashed_name(crafted)[1:]
    path.parent.mkdir(parents=True)
    path.write_bytes(crafted)
    with pytest.raises(UserError, match='was refused: it holds'):
        CheckpointLoader.load_checkpoint(address(scheme, crafted))
    assert not (tmp_path / 'witness').exists()


def test_files_of_mmengines_own_folder_and_of_its_storage(serve, monkeypatch, tmp_path):
    crafted = saved({'meta': Crafted(tmp_path / 'witness')}, tmp_path)
    (tmp_path / 'mmengine').mkdir()
    (tmp_path / 'mmengine' / 'net.pth').write_bytes(crafted)
    monkeypatch.setitem(web.LISTS, 'open-mmlab', lambda: {'net': 'net.pth'})

    class Backend:
        def get(self, filename):
            return crafted

    monkeypatch.setattr(web, 'get_file_backend', lambda filename, backend_args: Backend())
    for address in ('open-mmlab://net', 's3://bucket/net.pth', 'petrel://net.pth', 'cluster:s3://net.pth'):
        with pytest.raises(UserError, match='was refused: it holds'):
            CheckpointLoader.load_checkpoint(address)
    assert not (tmp_path / 'witness').exists()
    crafted = saved({'weight': torch.ones(2)}, tmp_path)
    assert CheckpointLoader.load_checkpoint('s3://bucket/net.pth')['weight'].tolist() == [1, 1]
    with pytest.raises(UserError, match='pavi://net: PAVI is not read'):
        CheckpointLoader.load_checkpoint('pavi://net')


def test_storage_whose_client_is_missing():
    with pytest.raises(UserError, match='cannot use s3://bucket/net.pth .*install petrel_client'):
        CheckpointLoader.load_checkpoint('s3://bucket/net.pth')


def test_torchvisions_hashes_are_compared(serve, monkeypatch, log, tmp_path):
    content = saved({'weight': torch.ones(2)}, tmp_path)
    name = hashed_name(content)
    for path, message in ((name, ''), ('/net-01234567.pth', r'its SHA-256 is \w{64}, but its name says 01234567…')):
        url = serve(path, content)
        monkeypatch.setitem(web.LISTS, 'torchvision', lambda url=url: {'net': url})
        if message:
            with pytest.raises(UserError, match=message):
                CheckpointLoader.load_checkpoint('torchvision://net')
        else:
            assert CheckpointLoader.load_checkpoint('torchvision://net')['weight'].tolist() == [1, 1]
            assert log == []  # it is the known one
    (path,) = (tmp_path / 'torch').rglob('*.pth')
    assert path.name == name[1:]
    path.write_bytes(saved({'weight': torch.zeros(2)}, tmp_path))
    with pytest.raises(UserError, match=rf'{name[1:]} is not the file that its name says, .*: remove it'):
        web.cached(serve(name, content), pinned=True)


def test_what_cannot_be_downloaded(serve, tmp_path):
    content = saved({'weight': torch.ones(2)}, tmp_path)
    for url, reason in (
        (serve('/none', b'').replace('/none', '/missing.pth'), 'HTTP Error 404'),
        (serve('/cut.pth', content, length=len(content) + 9), 'the connection was cut after'),
        (serve('/page.pth', b' <html>Sign in</html>'), 'a web page came instead of the file'),
        (serve('/half.pth', content[: len(content) // 2]), 'it is incomplete'),
        ('http://127.0.0.1:1/x.pth', 'Connection refused'),
        ('http://[::1/x.pth', 'Invalid IPv6 URL'),
        ('http://127.0.0.1:99999/..', 'cannot use'),
        (f'http://127.0.0.1/{"x" * 300}.pth', 'too long'),
    ):
        with pytest.raises(UserError, match=reason) as error:
            CheckpointLoader.load_checkpoint(url)
        assert '\n' not in str(error.value)
    assert files(tmp_path / 'torch') == []


def test_names_that_are_not_in_a_list():
    with pytest.raises(UserError, match="torchvision:// has no weights 'resnet50x': did you mean resnet50"):
        CheckpointLoader.load_checkpoint('torchvision://resnet50x')
    with pytest.raises(UserError, match="mmcls:// has no weights '': check the name"):
        CheckpointLoader.load_checkpoint('mmcls://')


def test_a_cache_that_cannot_be_written_is_read(serve, tmp_path, monkeypatch):
    url = serve('/net.pth', {'weight': torch.ones(2)})
    CheckpointLoader.load_checkpoint(url)
    monkeypatch.setattr(web, '_download', None)
    assert CheckpointLoader.load_checkpoint(url)['weight'].tolist() == [1, 1]


def test_processes_at_once_download_once(serve):
    url = serve('/net.pth', {'weight': torch.ones(2)})
    processes = [multiprocessing.get_context('fork').Process(target=web.cached, args=(url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0] and serve.paths == ['/net.pth']


def test_scripts_and_configs(serve, tmp_path, shapes, tiny_options, capsys):
    url = serve('/crafted.pth', {'state_dict': {}, 'meta': Crafted(tmp_path / 'witness')})
    init_cfg = dict(type='Pretrained', checkpoint=url)
    with pytest.raises(UserError, match='was refused'):
        MODELS.build(dict(type='AdaptiveDepthResNet', depth=50, base_channels=8, init_cfg=init_cfg)).init_weights()
    with pytest.raises(UserError, match='was refused'):
        load_checkpoint(torch.nn.Linear(1, 1), url)  # as a runner does with load_from
    image = next((shapes / 'val').glob('*.png'))
    for tool, argv in (
        ('demo', [str(image), DEMO_CONFIG, url, '--out', str(tmp_path / 'out')]),
        ('train', [DEMO_CONFIG, '--resume', url, '--work-dir', str(tmp_path / 'work'), *tiny_options]),
    ):
        capsys.readouterr()
        assert load_tool(tool).main(argv) == 2
        assert 'was refused: it holds' in capsys.readouterr().err
    assert not (tmp_path / 'witness').exists()
