import json

import numpy as np
import pytest
from operating_points import APS, MS, put_latency, put_run
from tiny import load_tool

from adn_mmdet.results.choice import describe_choice
from adn_mmdet.results.compare import compare, print_comparison, table_rows
from adn_mmdet.results.frontier import mixed
from adn_mmdet.results.intervals import pack


@pytest.fixture
def files(tmp_path):
    return [put_run(tmp_path / 'run')], [put_latency(tmp_path / 'ms.json')]


def by_point(content):
    return {row['point']: row for row in content['rows']}


def test_points_are_joined_named_and_compared_with_the_configs_own(files):
    rows = by_point(compare(*files))
    assert list(rows) == [f'{skip}@{size}/{number}' for skip, size, number in APS]
    assert [row['ms'] for row in rows.values()] == list(MS.values())
    assert [name for name, row in rows.items() if row['is_reference']] == ['FFFF@640/100']
    small = rows['TTTT@480/50']
    assert small['bbox_mAP_diff'] == pytest.approx(-0.09)
    # Of images that are hard for both, the interval knows: single APs spread over 0.2.
    assert -0.11 < small['bbox_mAP_diff_low'] < -0.09 < small['bbox_mAP_diff_high'] < -0.07
    same = rows['FFFF@640/100']
    assert same['bbox_mAP_diff'] == same['bbox_mAP_diff_low'] == same['bbox_mAP_diff_high'] == 0
    assert {name for name, row in rows.items() if row['front_bbox_mAP_ms']} == {
        'TTTT@480/50', 'TTTT@640/100', 'FFFF@480/50', 'TFFF@640/100', 'FFFF@640/100'}  # fmt: skip


def test_a_depth_below_the_mixing_line_is_worth_nothing(files):
    content = compare(*files)
    rows = by_point(content)
    assert rows['TFFF@640/100']['bbox_mAP_over_mix_ms'] == pytest.approx(0.399 - (0.34 + 0.06 * 16 / 20))
    assert rows['TTFF@640/100']['bbox_mAP_over_mix_ms'] == pytest.approx(0.35 - (0.34 + 0.06 * 14 / 20))
    assert not any('bbox_mAP_over_mix_ms' in rows[name] for name in rows if 'TTTT' in name or 'FFFF' in name)
    shown = {row['point']: row.get('over_mix') for row in table_rows(content['rows'], 'bbox_mAP')}
    assert shown['TTFF@640/100'] == '-3.20×' and shown['TFFF@640/100'] == '+1.10 '


def test_the_table_fits_on_a_terminal(files, capsys):
    print_comparison(compare(*files, budget=('ms', 30)))
    printed = capsys.readouterr().out
    assert 'TTFF@640/100' in printed and '-5.00 (-6.3, -3.5)' in printed and '-3.20×' in printed
    assert max(map(len, printed.split('Ship')[0].splitlines())) <= 80


def test_the_best_mix_that_costs_no_more():
    ends = [(20.0, 0.3), (40.0, 0.4)]
    costs = (19.9, 20, 25, 40, 50)
    assert [mixed(ends, cost) for cost in costs] == [None, 0.3, pytest.approx(0.325), 0.4, 0.4]
    assert [mixed([(20.0, 0.4), (40.0, 0.3)], cost) for cost in costs] == [None, 0.4, 0.4, 0.4, 0.4]
    assert mixed([(20.0, 0.3), (20.0, 0.4)], 20) == 0.4


def test_of_two_that_cannot_be_told_apart_the_cheaper_one_and_it_says_so(files, tmp_path):
    choice = compare(*files, budget=('ms', 50))['choice']
    assert (choice['sub_net']['point'], choice['best']['point']) == ('TFFF@640/100', 'FFFF@640/100')
    said = describe_choice(choice)
    assert 'Ship TFFF@640/100 of net for a budget of 50 ms: box AP 39.90 at 36.00 ms; -0.10 AP (95 %: ' in said
    assert 'FFFF@640/100 (40.00 at 40.00 ms) fits as well, but cannot be told apart from it' in said
    choice = compare(*files, budget=('ms', 30))['choice']
    assert choice['sub_net']['point'] == 'FFFF@480/50' and choice['best'] is None
    assert describe_choice(choice).endswith('-16.00 ms against FFFF@640/100.')
    unsure = compare([put_run(tmp_path / 'unsure', sure=False)], files[1], budget=('ms', 50))
    assert unsure['choice']['sub_net']['point'] == 'FFFF@640/100' and unsure['choice']['best'] is None
    assert by_point(unsure)['TTTT@480/50']['bbox_mAP_diff_low'] is None


def test_equal_predictions_have_an_interval_of_nothing(tmp_path):
    aps = pack(np.linspace(0.1, 0.9, 200))
    rows = compare([put_run(tmp_path / 'run', bbox_mAP=0.5, bbox_mAP_resampled=aps)], budget=('gmacs', 1e9))
    assert {(row['bbox_mAP_diff_low'], row['bbox_mAP_diff_high']) for row in rows['rows']} == {(0, 0)}
    assert rows['choice']['sub_net']['point'] == 'TTTT@480/50'


def test_older_files_are_at_the_configs_own_size(tmp_path):
    """Rows and latency without a size are those of points that name the config's own."""
    run = put_run(tmp_path / 'run')
    own = [place for place in APS if place[1] == 640]
    latency = put_latency(tmp_path / 'ms.json', own, size=None, proposals=None)
    content = json.loads(latency.read_text())
    content['run'] |= dict(size=640, proposals=100)
    rows = by_point(compare([run], [latency]))
    assert [row.get('ms') for row in rows.values()] == [40, 36, 34, 20, None, None]


@pytest.mark.parametrize(
    ('places', 'arguments', 'message'),
    [
        (
            [('FFFF', 480, 50)],
            ['--budget-ms', '5'],
            'fits a budget of 5 ms: the cheapest, FFFF@480/50 of net, takes 24 ms',
        ),
        (APS, ['--budget-ms', 'nan'], 'a budget should be a positive number of ms, but got nan'),
        (APS, ['--budget-ms', '-1'], 'a budget should be a positive number of ms, but got -1'),
        (None, [], 'has none of the points in'),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, places, arguments, message):
    run = put_run(tmp_path / 'run')
    latency = put_latency(tmp_path / 'ms.json', places or APS, **({} if places else dict(size=320)))
    if not places:
        content = json.loads(latency.read_text())
        latency.write_text(json.dumps(content | dict(rows=content['rows'][:1])))
    argv = [str(run), '--latency', str(latency), '--out', str(tmp_path / 'out'), *arguments]
    assert load_tool('compare').main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
