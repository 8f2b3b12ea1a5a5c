import copy
import pickle
import random

import pytest

from adn_mmdet import OperatingPoint, SkipConfig, UserError
from adn_mmdet.operating_point import parse_numbers

TTFF = SkipConfig.parse('TTFF')


@pytest.mark.parametrize(
    ('text', 'point'),
    [
        ('TTFF@640/300', OperatingPoint(TTFF, 640, 300)),
        ('TTFF', OperatingPoint(TTFF)),
        ('TTFF@640', OperatingPoint(TTFF, 640)),
        ('FFFF/300', OperatingPoint(SkipConfig.super_net(4), None, 300)),
        ('TFTFT@32/1', OperatingPoint(SkipConfig.parse('TFTFT'), 32, 1)),
        ('@640', OperatingPoint(None, 640)),
        ('/300', OperatingPoint(None, None, 300)),
    ],
)
def test_one_spelling(text, point):
    assert OperatingPoint.parse(text) == point and str(point) == text
    assert OperatingPoint.parse(point) == point and OperatingPoint.from_row(point.as_row()) == point
    assert pickle.loads(pickle.dumps(point)) == copy.deepcopy(point) == point


def test_what_else_is_a_point():
    assert str(OperatingPoint.parse('ttff@640', 4)) == 'TTFF@640'
    assert OperatingPoint.parse(TTFF) == OperatingPoint(TTFF) == OperatingPoint.from_row(dict(skip='TTFF'))
    assert OperatingPoint.from_row(dict(skip=None)) == OperatingPoint()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', "'' is not an operating point: give a skip code, @ and the short side"),
        ('TTFF@', 'is not an operating point'),
        ('TTFF/300@640', 'is not an operating point'),
        ('TTFF@640/', 'is not an operating point'),
        ('TTFF@64.0', 'is not an operating point'),
        ('TTFF@-640', 'is not an operating point'),
        ('TTFF@٦٤٠', 'is not an operating point'),
        ('TTFF @640', "'TTFF ' is not a skip code"),
        ('TTXF@640', "'TTXF' is not a skip code"),
        ('TTF', "'TTF' is not a skip code"),
        (
            'TTFF@31',
            'size should be the short side of the input in pixels, a whole number from 32 to 16384, but got 31',
        ),
        ('TTFF@999999', 'but got 999999'),
        ('TTFF/0', 'proposals should be the number of region proposals, a whole number from 1 to 100000, but got 0'),
        (None, 'None is not an operating point'),
        (640, '640 is not an operating point'),
        (OperatingPoint(SkipConfig.parse('TTT')), "'TTT' is not a skip code"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(UserError, match=message) as error:
        OperatingPoint.parse(text, 4)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('wrong', [dict(skip='TTFF'), dict(size=640.0), dict(size=True), dict(proposals='300')])
def test_parts_of_the_wrong_kind(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        OperatingPoint(**wrong)


def test_product_in_a_fixed_order():
    codes = [SkipConfig.super_net(4), SkipConfig.base_net(4)]
    points = OperatingPoint.product(codes, [480, 640, 480], [100, None, 300])
    assert ' '.join(map(str, points)) == (
        'FFFF@640 TTTT@640 FFFF@640/300 TTTT@640/300 FFFF@640/100 TTTT@640/100 '
        'FFFF@480 TTTT@480 FFFF@480/300 TTTT@480/300 FFFF@480/100 TTTT@480/100'
    )
    mixed = random.Random(0).sample(points, len(points))
    assert sorted(mixed) == points and len({*points, *mixed}) == 12
    assert OperatingPoint.product(codes) == [OperatingPoint(code) for code in codes]
    assert OperatingPoint.product(reversed(codes)) == [OperatingPoint(code) for code in reversed(codes)]
    assert OperatingPoint.product([None], [640]) == [OperatingPoint(None, 640)]
    with pytest.raises(TypeError):
        sorted([points[0], 'TTTT'])


def test_numbers_of_the_command_line():
    assert parse_numbers('size', '800, 640,800') == [800, 640]
    assert parse_numbers('proposals', None) == [None]
    for text in ('', '800,', '31', '640x480', '-1', '1e3', 'nan', '8' * 20):
        with pytest.raises(UserError, match='size should be the short side of the input in pixels, a whole number'):
            parse_numbers('size', text)
