"""The page is opened in headless Chromium, where that is installed."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imsave
from operating_points import APS, put_latency, put_run
from tiny import load_tool

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """The page of six points, of which two were painted."""
    folder = tmp_path_factory.mktemp('page')
    for code in ('FFFF@640-100', 'FFFF@480-50'):
        (folder / 'vis' / code).mkdir(parents=True)
        for name in ('1.png', '2.png'):
            imsave(folder / 'vis' / code / name, np.random.rand(8, 8, 3))
    argv = [put_run(folder / 'run'), '--latency', put_latency(folder / 'ms.json'), '--pictures', folder / 'vis']
    assert load_tool('compare').main([*map(str, argv), '--budget-ms', '30', '--out', str(folder / 'out')]) == 0
    return folder / 'out' / 'compare.html'


@pytest.fixture
def opened(page, tmp_path):
    """The page's DOM once its scripts have run, at a fragment."""
    if CHROMIUM is None:
        pytest.skip('needs Chromium: apt-get install chromium')

    def dump(fragment=''):
        options = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}', '--dump-dom']
        command = [CHROMIUM, *options, '--virtual-time-budget=5000', f'{page.as_uri()}{fragment}']
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return re.sub('<script>.*?</script>', '', dom, flags=re.DOTALL)

    return dump


def chosen(dom):
    return re.findall('<tr class="chosen" data-point="([^"]*)"', dom)


def test_chart_table_sentence_and_pictures(opened):
    dom = opened()
    assert '<svg class="main-svg"' in dom and dom.count('<path class="point') >= len(APS)
    rows = re.findall('data-point="([^"]*)"', dom)
    assert rows == [f'{skip}@{size}/{number}' for skip, size, number in APS]
    assert chosen(dom) == ['FFFF@480/50'] and dom.count('data:image/jpeg') == 4
    assert 'Ship FFFF@480/50 of net for a budget of 30 ms: box AP 38.00 at 24.00 ms; -2.00 AP' in html.unescape(dom)
    assert '-3.20 ×' in dom  # worth nothing


def test_the_budget_changes_what_is_chosen(opened):
    dom = opened('#budget=15')
    assert chosen(dom) == ['TTTT@480/50'] and 'Ship TTTT@480/50 of net for a budget of 15 ms' in dom
    dom = opened('#budget=1000&cost=gmacs')  # of two that cannot be told apart the cheaper
    assert chosen(dom) == ['TFFF@640/100'] and 'cannot be told apart from it' in dom
    dom = opened('#budget=5')
    assert not chosen(dom) and 'Nothing keeps 5 ms: the cheapest, TTTT@480/50, takes 10 ms' in dom


def test_one_file_without_network(page):
    text = page.read_text(encoding='utf-8')
    own = text.split('<script>')[0] + text.rpartition('<script>')[2]
    assert not re.search(r'(src|href)=["\']?(https?:)?//|@import|url\(', own)
    assert 'prefers-color-scheme: dark' in own and 'name="viewport"' in own


def test_names_cannot_end_the_script(tmp_path, capsys):
    run = put_run(tmp_path / 'run')
    path = run / 'sub_nets.json'
    path.write_text(path.read_text().replace('"name": "net"', '"name": "</script><b>"'))
    assert load_tool('compare').main([str(run), '--out', str(tmp_path / 'out')]) == 0
    assert '</script><b>' not in (tmp_path / 'out' / 'compare.html').read_text(encoding='utf-8')


def test_no_pictures_of_these_points(tmp_path, capsys):
    run, vis = put_run(tmp_path / 'run'), tmp_path / 'vis'
    argv = [str(run), '--pictures', str(vis), '--out', str(tmp_path / 'out')]
    assert load_tool('compare').main(argv) == 2
    assert 'has no pictures of these points: paint them with tools/test.py --show-dir' in capsys.readouterr().err
    (vis / 'FFFF').mkdir(parents=True)
    (vis / 'FFFF' / '1.png').write_bytes(b'cut')
    assert load_tool('compare').main(argv) == 2
    assert 'FFFF/1.png' in (error := capsys.readouterr().err) and 'paint it again' in error
    assert not (tmp_path / 'out' / 'compare.html').exists()
