"""tools/benchmarks/fashion_detection.py: what it prints of results, computed by hand."""

import numpy as np
import pytest
from benchmarks.fashion_detection import at_cost, by_point, difference, report

from adn_mmdet.results.intervals import pack


def point(ap, gmacs, skip=None, size=128):
    """A row whose AP on two drawn test sets is 0.01 lower and higher."""
    return dict(
        skip=skip, size=size, gmacs=gmacs, bbox_mAP=ap, bbox_mAP_50=ap, bbox_mAP_resampled=pack([ap - 0.01, ap + 0.01])
    )


def result(row, seed, *points):
    return dict(row=row, seed=seed, steps=1, seconds=1, points=list(points))


RESULTS = [
    result('R50', 0, point(0.40, 0.08), point(0.30, 0.04, size=96), point(0.10, 0.02, size=64)),
    result('R50', 1, point(0.44, 0.08), point(0.30, 0.04, size=96)),
    result('R50-Base', 0, point(0.37, 0.06)),
    result('R50-Base', 1, point(0.39, 0.06)),
]


def test_a_smaller_input_is_compared_at_equal_cost():
    points = by_point(RESULTS)
    found = at_cost(points, 'R50', None, 0.06)
    assert found.by_seed == pytest.approx({0: 35, 1: 37})
    assert np.allclose(found.drawn[1], [36, 38])
    assert list(at_cost(points, 'R50', None, 0.03).by_seed) == [0]
    assert at_cost(points, 'R50', None, 0.09) is None


def test_a_difference_is_of_the_seeds_that_both_have():
    points = by_point(RESULTS)
    deep, base = points['R50', None, 128], points['R50-Base', None, 128]
    assert difference(deep, base) == '+4.00 (+4.00 to +4.00); by seed +3.00, +5.00'
    drawn = {0: np.array([36.0, 36.0]), 1: np.array([38.0, 38.0])}
    assert difference(deep, base._replace(drawn=drawn)) == '+4.00 (+4.05 to +5.95); by seed +3.00, +5.00'
    assert difference(deep, base._replace(by_seed={2: 37.0})) == 'no seed in common'


def test_report_prints_table_and_differences(capsys):
    report(RESULTS)
    printed = capsys.readouterr().out
    assert '| R50 |  | 128 | 80.0 | 40.0, 44.0 |' in printed
    assert 'R50 - R50-Base: +4.00 (+4.00 to +4.00); by seed +3.00, +5.00' in printed
    assert 'at 60.0 MMACs, R50-Base - R50 on smaller images: +2.00 (+2.00 to +2.00); by seed +2.00, +2.00' in printed
