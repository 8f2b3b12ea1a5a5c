import math

import numpy as np
import pytest

from adn_mmdet import UserError
from adn_mmdet.results.intervals import can_be_told_apart, interval_of_difference, pack, unpack
from adn_mmdet.results.rows import add_row, read_sub_nets


def row(aps, ap=None):
    return {'bbox_mAP': float(np.nanmean(aps) if ap is None else ap), 'bbox_mAP_resampled': pack(aps)}


def test_what_is_kept_is_read_again():
    aps = np.array([0.25, math.nan, 0.5])
    np.testing.assert_array_equal(unpack(pack(aps)), aps)
    assert len(pack(np.zeros(300))) == 1600  # characters a metric and point
    assert len(unpack('AAA=')) == 0


def test_interval_holds_95_percent_of_the_paired_differences():
    rng = np.random.default_rng(0)
    hard, differences = rng.uniform(0.1, 0.6, 200), rng.permutation(np.arange(200)) / 10_000 - 0.005
    low, high = interval_of_difference(row(hard + differences), row(hard), 'bbox_mAP')
    assert (low, high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-6)


def test_draws_without_an_object_do_not_count():
    aps = np.array([0.3, math.nan, 0.4])
    assert interval_of_difference(row(aps + 0.1), row(aps), 'bbox_mAP') == pytest.approx((0.1, 0.1), abs=1e-6)
    nothing = row(np.full(3, math.nan), 0.3)
    assert interval_of_difference(nothing, row(aps), 'bbox_mAP') is None


def test_what_cannot_be_told_apart():
    base = np.linspace(0.3, 0.4, 100)
    noise = np.where(np.arange(100) % 2, 0.01, -0.01)
    assert not can_be_told_apart(row(base), row(base), 'bbox_mAP')
    assert interval_of_difference(row(base), row(base), 'bbox_mAP') == (0, 0)
    assert not can_be_told_apart(row(base + noise, 0.36), row(base, 0.35), 'bbox_mAP')
    assert can_be_told_apart(row(base + 0.02), row(base), 'bbox_mAP')
    assert can_be_told_apart(row(base), row(base + 0.02), 'bbox_mAP')
    without = {'bbox_mAP': 0.35}  # of an earlier version: all that is known is AP
    assert interval_of_difference(row(base), without, 'bbox_mAP') is None
    assert can_be_told_apart(row(base, 0.36), without, 'bbox_mAP') and not can_be_told_apart(
        without, without, 'bbox_mAP'
    )
    assert interval_of_difference(row(base), row(base[:50]), 'bbox_mAP') is None  # of another number of draws


@pytest.mark.parametrize('value', [0.5, '', 'AAA', 'A' * 8 + '====', 'AAAA\n', [0.5]])
def test_what_no_test_has_written_is_refused_as_read(tmp_path, value):
    about = dict(name='net', checkpoint_sha256=None, annotations_sha256=None, classes=['a'], num_images=2)
    add_row(tmp_path, {**about, 'input_size': [64, 64]}, dict(skip='FFFF', gmacs=1.0, bbox_mAP_resampled=value))
    with pytest.raises(UserError, match=r'rows\[0\] has the bbox_mAP_resampled'):
        read_sub_nets(tmp_path)
