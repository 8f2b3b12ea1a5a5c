import math

import pytest

from adn_mmdet import UserError
from adn_mmdet.results.pareto import Point, best_under_budget, pareto_front

FFFF, TFFF, TTFF, FFTF, TTTT = POINTS = [
    Point(40, 0.38, 'FFFF'),
    Point(36, 0.37, 'TFFF'),
    Point(30, 0.35, 'TTFF'),
    Point(30, 0.36, 'FFTF'),  # as cheap as TTFF and better
    Point(25, 0.33, 'TTTT'),
]


def test_front():
    assert pareto_front(POINTS) == [TTTT, FFTF, TFFF, FFFF]
    assert pareto_front([*POINTS, Point(41, 0.38, 'FFFT')]) == [TTTT, FFTF, TFFF, FFFF]  # dearer and no better
    assert pareto_front([FFFF, FFFF._replace(skip='FFFT')]) == [FFFF]
    assert pareto_front([TFFF, Point(20, 0.39, 'TTTF')]) == [Point(20, 0.39, 'TTTF')]
    assert pareto_front([]) == []


def test_front_is_what_nothing_dominates():
    def is_dominated(point):
        return any(
            other.cost <= point.cost and other.accuracy >= point.accuracy and other[:2] != point[:2] for other in POINTS
        )

    assert set(pareto_front(POINTS)) == {point for point in POINTS if not is_dominated(point)}


@pytest.mark.parametrize(('budget', 'best'), [(math.inf, FFFF), (40, FFFF), (39.9, TFFF), (30, FFTF), (25, TTTT)])
def test_best_under_budget(budget, best):
    assert best_under_budget(POINTS, budget) == best
    assert best_under_budget(reversed(POINTS), budget) == best


def test_of_equally_accurate_ones_the_cheapest():
    assert best_under_budget([FFFF, Point(39, 0.38, 'FFFT')], 50).skip == 'FFFT'


@pytest.mark.parametrize('budget', [24.9, -1, math.nan])
def test_nothing_fits(budget):
    with pytest.raises(UserError, match='no sub-network fits .* the cheapest, TTTT, takes 25 GMACs'):
        best_under_budget(POINTS, budget, 'GMACs')


def test_nothing_to_choose_from():
    with pytest.raises(UserError, match='no sub-network to choose from'):
        best_under_budget([], 40)
