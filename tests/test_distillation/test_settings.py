import math
from dataclasses import FrozenInstanceError

import pytest

from adn_mmdet import UserError
from adn_mmdet.distillation import DistillationSettings

NUMBERS = ('alpha', 'gt_weight', 'kd_weight', 'prediction_weight', 'temperature')
NO_NUMBERS = (math.nan, math.inf, -math.inf, 10**400, True, '1.0', None, [1.0])


@pytest.mark.parametrize('value', NO_NUMBERS, ids=lambda value: repr(value)[:8])
@pytest.mark.parametrize('name', NUMBERS)
def test_weights_and_temperature_are_finite_numbers(name, value):
    with pytest.raises(UserError, match=f'^{name} should be a finite number, but got ') as error:
        DistillationSettings(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize('value', [*NO_NUMBERS[:3], True, '1', None, 0.5, 2.0, -1], ids=repr)
def test_warmup_is_a_whole_number(value):
    with pytest.raises(UserError, match='warmup_iters should be a whole number, 0 or more, but got '):
        DistillationSettings(warmup_iters=value)


@pytest.mark.parametrize('value', [[0, 0], [], [-1], [True], ['0'], [0.0], '01', 2, {0: 1}], ids=repr)
def test_levels_are_different_indices(value):
    with pytest.raises(UserError, match='levels should be indices of outputs, each once') as error:
        DistillationSettings(levels=value)
    assert f'but got {value!r}' in str(error.value)


@pytest.mark.parametrize('name', ['feature', 'mode'])
@pytest.mark.parametrize('value', [None, 1, ['spatial'], 'joint,sequential'], ids=repr)
def test_names_are_those_that_there_are(name, value):
    with pytest.raises(UserError, match=f'{name} should be one of .*(l2|sequential), but got'):
        DistillationSettings(**{name: value})


def test_nothing_changes_them():
    with pytest.raises(FrozenInstanceError):
        DistillationSettings().alpha = 0.4


@pytest.mark.parametrize('value', [0, 1, -1, 2.0, True, '500'], ids=repr)
def test_top_k_is_a_number_of_classes(value):
    with pytest.raises(UserError, match='top_k should be a whole number of classes, 2 or more, but got '):
        DistillationSettings(prediction_weight=1.0, top_k=value)


def test_top_k_needs_what_it_is_of():
    with pytest.raises(UserError, match='top_k=500 is of the predictions, whose prediction_weight is 0'):
        DistillationSettings(top_k=500)
