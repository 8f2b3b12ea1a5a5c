"""The page of tools/web_demo.py, served, and opened in headless Chromium where that is installed."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time

import httpx
import pytest
from test_tools import fails
from tiny import load_tool

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture
def serve(net, shapes, monkeypatch, tmp_path, capsys):
    """Run tools/web_demo.py until a function, which is called with the page's address, returns."""
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    tool, handler = load_tool('web_demo'), signal.getsignal(signal.SIGTERM)
    argv = [net.config, net.checkpoint, '--sub-nets', net.results, '--images', str(shapes / 'val'), '--device', 'cpu']

    def run(look):
        def wait():
            look(capsys.readouterr().out.splitlines()[-1].split()[0])
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

        monkeypatch.setattr(tool, 'wait', wait)
        with pytest.raises(SystemExit) as ended:
            tool.main(argv)
        assert ended.value.code == 143 and list((tmp_path / 'tmp').iterdir()) == []

    run.argv, run.folder = argv, tmp_path / 'tmp'
    yield run
    signal.signal(signal.SIGTERM, handler)


def kept(folder):
    """The files of users that are there, beside the page's own examples and its lock."""
    names = {name for _, _, files in os.walk(folder) for name in files}
    return {name for name in names if name != '.lock' and not name.startswith('0000')}


def test_over_http(serve, monkeypatch):
    monkeypatch.setattr('adn_mmdet.web.page.MOST_BYTES', 10_000)

    def look(address):
        page = httpx.get(address)
        assert page.status_code == 200 and "default-src 'self'" in page.headers['content-security-policy']
        assert address.startswith('http://127.0.0.1:')
        (folder,) = serve.folder.glob('adn_mmdet_web_*')
        too_large = httpx.post(f'{address}gradio_api/upload', files={'files': ('a.jpg', bytes(10_001))})
        assert too_large.status_code == 413 and kept(folder) == set()
        assert httpx.get(f'{address}gradio_api/file={__file__}').status_code == 403
        assert os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'

    serve(look)


def test_what_is_wrong_is_one_line(serve, net, capsys, monkeypatch):
    main = load_tool('web_demo').main
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        fails(main, [*serve.argv, '--port', str(port)], capsys, f'port {port} of 127.0.0.1 cannot be used')
    fails(main, [net.config, net.checkpoint, '--sub-nets', 'none.json'], capsys, 'none.json')
    fails(main, [net.config, net.checkpoint, '--images', 'none'], capsys, 'none should be a folder of images')
    monkeypatch.delitem(sys.modules, 'adn_mmdet.web.page', raising=False)
    monkeypatch.setitem(sys.modules, 'gradio', None)
    fails(main, [net.config, net.checkpoint], capsys, 'pip install "adn_mmdet[web]"')
    assert not list(serve.folder.glob('adn_mmdet_web_*'))


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium: apt-get install chromium')
def test_in_chromium(playground, examples, files, tmp_path, monkeypatch):
    """Two users with the page open: a slider, an upload, what is no image, a video, a closed page."""
    from playwright.sync_api import sync_playwright

    from adn_mmdet.web.page import serving

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))

    def look(address):
        (folder,) = tmp_path.glob('adn_mmdet_web_*')
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
            page, other = (browser.new_page() for _ in range(2))
            asked = []
            page.on('request', lambda request: asked.append(request.url))
            for each in (page, other):
                each.goto(address)
                each.wait_for_selector('#card-B img')
            slide(page, other)
            upload(page, other, folder)
            page.close()
            until(lambda: kept(folder) == set())
            assert all(url.startswith((address, 'data:', 'blob:')) for url in asked) and asked
            browser.close()

    def slide(page, other):
        a, b, others = shown(page, 'A'), shown(page, 'B'), shown(other, 'B')
        assert a['point'] == 'FFFF@64/20' and b['point'] == others['point'] == 'TTTT@32/20'
        slider = page.locator('#position-B input[type=range]')
        slider.focus()
        slider.press('ArrowRight')
        page.wait_for_selector('#card-B b:text-is("TTTT@64/20")')
        moved = shown(page, 'B')
        assert moved['ms'] != b['ms'] and moved['GMACs'] == '6.00' and moved['box AP'] == '30.0'
        assert moved['picture'] != b['picture'] and shown(page, 'A') == a and shown(other, 'B') == others

    def upload(page, other, folder):
        a, others = shown(page, 'A'), shown(other, 'A')
        for name, said in (
            ('drawing.svg', 'should be an image'),
            ('no_frame.avi', 'is no video'),
            ('large.png', '30 mega'),
        ):
            page.set_input_files('#upload input[type=file]', files / name)
            page.wait_for_selector(f'#line .wrong:has-text("{name} "):has-text("{said}")')
            assert shown(page, 'A') == a and kept(folder) == set()
        page.set_input_files('#upload input[type=file]', files / 'drive.avi')
        page.wait_for_selector('#frame')
        page.wait_for_function("document.querySelector('#frame input').value == 2")  # it plays to its end
        assert shown(page, 'A')['picture'] != a['picture'] and shown(page, 'line') == ''
        assert shown(other, 'A') == others and kept(folder) == {'drive.avi'}

    with serving(playground, examples, 'tiny') as address:
        look(address)
    assert list(tmp_path.iterdir()) == []


def shown(page, side):
    """What a card says, by name."""
    if side == 'line':
        return page.inner_text('#line').strip()
    card = page.locator(f'#card-{side}')
    facts = dict(zip(card.locator('dt').all_inner_texts(), card.locator('dd').all_inner_texts()))
    return facts | dict(point=card.locator('b').inner_text(), picture=card.locator('img').get_attribute('src'))


def until(done, seconds=20):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)
