import json

import pytest

from adn_mmdet import UserError
from adn_mmdet.results.report import write_report
from adn_mmdet.results.rows import add_row
from adn_mmdet.results.tables import markdown_table, print_table

RUN = dict(name='net', checkpoint_sha256='a')


def row(skip, ap=0.5):
    return dict(skip=skip, bbox_mAP=ap, bbox_mAP_l=None, gmacs=1.0, params_held_m=0.5, params_active_m=12.345)


def test_rows_are_added_replaced_and_started_anew(tmp_path):
    add_row(tmp_path, RUN, row('TTTT'))
    add_row(tmp_path, RUN, row('FFFF', 0.1))
    rows = add_row(tmp_path, RUN, row('FFFF', 0.12345678901234))
    assert [entry['skip'] for entry in rows] == ['FFFF', 'TTTT']
    written = json.loads((tmp_path / 'sub_nets.json').read_text())
    assert written == dict(schema=1, run=RUN, rows=rows) and rows[0]['bbox_mAP'] == 0.12345678901234
    assert len(add_row(tmp_path, RUN | dict(name='moved'), row('FTFF'))) == 3
    assert len(add_row(tmp_path, RUN | dict(checkpoint_sha256='b'), row('TFFF'))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['sub_nets.json']


def test_tables(capsys):
    rows = [row('FFFF', 0.38349), row('TTTT', None)]
    assert markdown_table(rows).splitlines()[2:] == [
        '| FFFF | 38.35 | 1.00 | 0.5 | 12.35 |',
        '| TTTT | – | 1.00 | 0.5 | 12.35 |',
    ]
    print_table([row(None)], 'a net')
    printed = capsys.readouterr().out
    assert 'a net' in printed and '50.00' in printed and 'mask AP' not in printed


@pytest.mark.parametrize('content', ['', '{"schema": 1,', '[]'])
def test_results_that_cannot_be_read(tmp_path, content):
    (tmp_path / 'sub_nets.json').write_text(content)
    with pytest.raises(UserError, match='sub_nets.json .*: remove it, or give another work folder'):
        add_row(tmp_path, RUN, row('FFFF'))
    with pytest.raises(UserError, match='sub_nets.json .*: write it with tools/test.py'):
        write_report(tmp_path)
