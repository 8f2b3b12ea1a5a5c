import re

import numpy as np
import pytest
from matplotlib.image import imread, imsave
from operating_points import put_latency, put_run
from tiny import load_tool

from adn_mmdet import UserError
from adn_mmdet.results.report import write_report
from adn_mmdet.results.rows import add_row
from adn_mmdet.results.tables import markdown_table, print_table

RUN = dict(name='net', checkpoint_sha256='a')
WHOLE_RUN = dict(RUN, annotations_sha256=None, classes=['cell'], num_images=6, input_size=[32, 64])


def row(skip, ap=0.5):
    return dict(skip=skip, bbox_mAP=ap, bbox_mAP_l=None, gmacs=1.0, params_held_m=0.5, params_active_m=12.345)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith('.'))  # a lock's file stays


def test_tables(capsys):
    rows = [row('FFFF', 0.38349), row('TTTT', None)]
    assert markdown_table(rows).splitlines()[2:] == [
        '| FFFF | 38.35 | 1.00 | 0.5 | 12.35 |',
        '| TTTT | – | 1.00 | 0.5 | 12.35 |',
    ]
    print_table([row(None)], 'a net')
    printed = capsys.readouterr().out
    assert 'a net' in printed and '50.00' in printed and 'mask AP' not in printed


@pytest.mark.parametrize('name', ['[/x]', '[red]a', '[link=a]b', ':smile:', 'a|b', '`a', '<b>', '[a](b)', '\\'])
def test_names_are_no_markup(capsys, name):
    rows = [row('FFFF') | dict(run=name), row('TTTT') | dict(run='plain')]
    print_table(rows, f'title {name}')
    printed = capsys.readouterr().out
    assert f'title {name}' in printed and f'│ {name} ' in printed
    lines = markdown_table(rows).splitlines()
    assert len({len(re.findall(r'(?<!\\)(?:\\\\)*\|', line)) for line in lines}) == 1
    assert re.sub(r'\\(.)', r'\1', lines[2]).startswith(f'| {name} | FFFF |')


def paint(folder, *files):
    folder.mkdir(parents=True)
    for name in files:
        imsave(folder / name, np.random.rand(8, 8, 3))
    return folder


def test_report_of_two_runs_with_pictures(tmp_path):
    add_row(tmp_path, WHOLE_RUN | dict(num_images=2), row('FFFF', 0.1))
    for code in ('FFFF', 'TFFF', 'TTTT'):
        add_row(tmp_path, WHOLE_RUN, row(code))
    for code in ('FFFF', 'TTTT'):  # TFFF was not painted
        paint(tmp_path / 'vis' / code, '1.png', '2.png', f'{code}.png')
    (tmp_path / 'vis' / 'FFFF' / '.DS_Store').touch()
    assert load_tool('report').main([str(tmp_path), '--pictures', str(tmp_path / 'vis')]) == 0
    text = (tmp_path / 'report.md').read_text()
    assert text.startswith('# net, images 6\n\n6 images; AP in percent; costs for one image of 32×64 px.')
    assert text.index('| TTTT | 50.00 |') < text.index('predictions.png') < text.index('# net, images 2')
    assert (
        '| FFFF | 10.00 |' in text and 'predictions of FFFF and TTTT' in text and text.count('accuracy_cost.png') == 1
    )
    assert imread(tmp_path / 'predictions.png').ndim == imread(tmp_path / 'accuracy_cost.png').ndim == 3


def test_report_without_ap_has_no_plot(tmp_path):
    (tmp_path / 'accuracy_cost.png').write_bytes(b'of an earlier test')
    add_row(tmp_path, WHOLE_RUN, row('FFFF', None))
    assert 'png' not in write_report(tmp_path).read_text()
    assert names(tmp_path) == ['report.md', 'sub_nets.json']


def test_pictures_that_are_not_there(tmp_path, capsys):
    add_row(tmp_path, WHOLE_RUN, row('FFFF'))
    vis = tmp_path / 'vis'
    for prepare, message in [
        (lambda: None, 'no pictures, paint them with tools/test.py --show-dir'),
        (lambda: paint(vis / 'FFFF'), 'no pictures, paint them with tools/test.py --show-dir'),
        (
            lambda: (vis / 'FFFF' / '1.png').write_bytes(b'cut'),
            'cannot read the picture .*FFFF/1.png .*: paint it again',
        ),
        (lambda: (vis / 'FFFF' / '1.png').write_text('no\npicture'), 'cannot read the picture .*: paint it again'),
    ]:
        prepare()
        assert load_tool('report').main([str(tmp_path), '--pictures', str(vis)]) == 2
        error = capsys.readouterr().err
        assert re.match(f'error: .*{message}\n$', error), error
        assert names(tmp_path) == (['sub_nets.json', 'vis'] if vis.exists() else ['sub_nets.json'])


@pytest.mark.parametrize('name', ['report.md', 'accuracy_cost.png', 'predictions.png'])
def test_a_folder_where_a_file_goes(tmp_path, capsys, name):
    add_row(tmp_path, WHOLE_RUN, row('FFFF'))
    (tmp_path / name).mkdir()
    assert load_tool('report').main([str(tmp_path)]) == 2
    assert re.match(f'error: .*{name} is a folder.*\n$', capsys.readouterr().err)
    assert names(tmp_path) == sorted([name, 'sub_nets.json'])


def test_no_work_folder_is_not_made(tmp_path, capsys):
    assert load_tool('report').main([str(tmp_path / 'none')]) == 2
    assert re.match('error: there is no .*: run tools/test.py with --work-dir .* first\n$', capsys.readouterr().err)
    assert names(tmp_path) == []


@pytest.mark.parametrize('content', ['', '{"schema": 1,', '[]'])
def test_results_that_cannot_be_read(tmp_path, content):
    (tmp_path / 'sub_nets.json').write_text(content)
    with pytest.raises(UserError, match='sub_nets.json .*: remove it, or give another work folder'):
        add_row(tmp_path, RUN, row('FFFF'))
    with pytest.raises(UserError, match='sub_nets.json .*: write it with tools/test.py'):
        write_report(tmp_path)


def test_report_of_points_opens_with_what_to_ship(tmp_path, capsys):
    run, latency = put_run(tmp_path / 'run'), put_latency(tmp_path / 'ms.json')
    for code in ('FFFF', 'TTTT@480-50'):
        paint(tmp_path / 'vis' / code, '1.png')
    argv = [str(run), '--latency', str(latency), '--pictures', str(tmp_path / 'vis')]
    assert load_tool('report').main(argv) == 0
    lines = (run / 'report.md').read_text().splitlines()
    assert lines[0] == '# net'
    assert lines[2].startswith(
        'Ship FFFF@480/50 of net for a budget of 25 ms (halfway from the cheapest to FFFF@640/100): '
        'box AP 38.00 at 24.00 ms; -2.00 AP (95 %: '
    )
    text = '\n'.join(lines)
    assert '| TTFF@640/100 | 35.00 | -5.00 (-6.3, -3.5) | 68.00  | 34.00  | -3.20× |' in text
    assert 'predictions of FFFF and TTTT@480-50' in text
    assert load_tool('report').main([*argv, '--budget-ms', '25']) == 0
    assert 'Ship FFFF@480/50 of net for a budget of 25 ms: ' in (run / 'report.md').read_text()
    for limit, message in (('5', 'the cheapest, TTTT@480/50 of net, takes 10 ms'), ('nan', 'but got nan')):
        capsys.readouterr()
        assert load_tool('report').main([*argv, '--budget-ms', limit]) == 2
        assert message in capsys.readouterr().err
