import io
import random

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from adn_mmdet import SkipConfig
from adn_mmdet.results.plot import draw_accuracy_against_cost, plot_accuracy_against_cost

SKIPPED_BLOCKS = (1, 2, 3, 1)  # a stage


def any_depth_run(name='adn', noise=0.002, spread=0.04):
    """16 codes of 8 distinct GMACs and 16 distinct ms; plausible numbers of Mask R-CNN on COCO."""
    random.seed(name)
    rows = []
    for code in SkipConfig.all(4):
        saved = sum(blocks for blocks, is_skipped in zip(SKIPPED_BLOCKS, code) if is_skipped)
        box_ap = 0.38 - spread * saved / 7 + random.gauss(0, noise)
        cost = dict(gmacs=259.79 - 4.456 * saved, ms=52 - 1.1 * saved + random.gauss(0, 0.15))
        rows.append(dict(run=name, skip=str(code), bbox_mAP=box_ap, segm_mAP=0.9 * box_ap, **cost))
    return rows


def net(name, ap, gmacs, **more):
    return dict(run=name, skip=None, bbox_mAP=ap, segm_mAP=0.9 * ap, gmacs=gmacs) | more


PAPER = [net('paper', ap, gmacs, kind='paper', skip=skip) for skip, ap, gmacs in
         [('FFFF', 0.383, 260.14), ('TTTT', 0.341, 228.73)]]  # fmt: skip
NETS = [net('R50', 0.374, 259.79, ms=51.8), net('R50-Base', 0.331, 228.6, ms=44.1)]


def without(rows, *keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


LAYOUTS = {
    '4 panels': (4, any_depth_run() + NETS + PAPER),
    '2 panels, no ms': (2, without(any_depth_run() + NETS + PAPER, 'ms')),
    '2 panels, no masks': (2, without(any_depth_run() + NETS, 'segm_mAP')),
    '1 panel, no names': (1, without(any_depth_run(), 'segm_mAP', 'ms', 'run')),
    'codes within 0.1 AP': (4, any_depth_run(noise=0.0003, spread=0.001)),
    'equal codes': (4, any_depth_run(noise=0, spread=0) + PAPER),
    'two runs': (4, any_depth_run() + any_depth_run('adn, other weights') + NETS + PAPER),
}


@pytest.mark.parametrize(('num_panels', 'rows'), LAYOUTS.values(), ids=LAYOUTS)
def test_every_code_has_a_label_of_its_own_and_every_run_its_name(num_panels, rows):
    figure = draw_accuracy_against_cost(rows)
    assert len(figure.axes) == num_panels
    for axis in figure.axes:
        cost = 'ms' if axis.get_xlabel().startswith('ms') else 'gmacs'
        assert [label.get_text() for label in axis.texts] == [
            row['skip'] for row in rows if row['skip'] and cost in row
        ]
        taken = [label.get_window_extent() for label in axis.texts]
        assert all(axis.bbox.contains(*corner) for box in taken for corner in box.corners())
        marks = [line for line in axis.lines if len(line.get_xdata()) == 1]
        assert len(marks) == sum(cost in row for row in rows)
        centres = [axis.transData.transform(line.get_xydata()[0]) for line in marks]
        radius = marks[0].get_markersize() / 2 * figure.dpi / 72
        taken += [Bbox([centre - radius, centre + radius]) for centre in centres]
        for index, label in enumerate(axis.texts):
            box = label.get_window_extent()
            assert box.count_overlaps(taken[:index] + taken[index + 1 :]) == 0, label.get_text()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    lines = {name for name in names if 'front' in name or 'alternating' in name}
    assert {*names} - lines == {row['run'] for row in rows if 'run' in row} and len(names) == len({*names})
    box = legend.get_window_extent()
    assert figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max)


def test_front_and_marks():
    rows = [net('adn', 0.3, 30, skip='FFFF'), net('adn', 0.2, 25, skip='FTFF'), net('adn', 0.25, 20, skip='TTTT')]
    axis = draw_accuracy_against_cost([*rows, *NETS, *PAPER]).axes[0]
    front, mix = (line for line in axis.lines if len(line.get_xdata()) > 1)
    assert mix.get_linestyle() == ':' and np.array_equal(mix.get_xydata(), [[20, 25], [30, 30]])
    assert np.array_equal(front.get_xydata(), [[20, 25], [30, 30]])
    marks = [line for line in axis.lines if line not in (front, mix)]
    assert [line.get_markerfacecolor() != 'none' for line in marks] == [True, False, True, False, False, False, False]
    assert [line.get_marker() for line in marks] == ['o', 'o', 'o', 's', '^', 'X', 'X']


def test_plot_of_whatever_there_is():
    row = dict(skip='FFFF', bbox_mAP=0.5, gmacs=1.0)
    nothing = row | dict(bbox_mAP=None)
    picture = plot_accuracy_against_cost([row, row | dict(skip=None), nothing])
    assert imread(io.BytesIO(picture)).shape[:2] == (672, 840)
    assert plot_accuracy_against_cost([nothing]) is None


@pytest.mark.parametrize('name', ['$', '$\\frac{$', '[/x]', '%s{}', '名前', 'n' * 200])
def test_names_are_drawn_as_they_are(name):
    assert plot_accuracy_against_cost([net(name, 0.5, 1.0)], dict(gmacs=f'GMACs on {name}', ms='ms'))
