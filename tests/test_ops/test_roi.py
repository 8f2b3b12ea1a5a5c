"""RoIAlign and RoIPool, against loops over bins, points and cells in float64."""

import math

import pytest
import torch
from loops import assert_same, bilinear, with_gradients
from mmcv.ops import deform_roi_pool, roi_align, roi_pool

SCALE = 0.25
# Two inside, one over the edges, one empty, one outside, one of a single pixel.
BOXES = torch.tensor(
    [
        [0, 4.0, 2.0, 33.0, 21.0],
        [1, 10.5, 11.25, 29.5, 30.0],
        [1, -9.0, -5.0, 20.0, 60.0],
        [0, 8.0, 8.0, 8.0, 8.0],
        [0, 200.0, 200.0, 260.0, 230.0],
        [1, 12.0, 12.0, 13.0, 13.0],
    ]
)
BACKWARDS = torch.tensor([[0, 20.0, 30.0, 10.0, 5.0]])


def make_features(channels=2, height=8, width=11):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def roi_align_loop(features, boxes, rows, columns, ratio, aligned):
    shift = 0.5 if aligned else 0.0
    output = features.new_zeros(len(boxes), features.shape[1], rows, columns)
    for number, (image, *corners) in enumerate(boxes.double().tolist()):
        left, top, right, bottom = (corner * SCALE - shift for corner in corners)
        width, height = right - left, bottom - top
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        across, down = ratio or math.ceil(width / columns), ratio or math.ceil(height / rows)
        for row in range(rows):
            for column in range(columns):
                points = [
                    (
                        top + (row + (i + 0.5) / down) * height / rows,
                        left + (column + (j + 0.5) / across) * width / columns,
                    )
                    for i in range(down)
                    for j in range(across)
                ]
                values = [at_point(features[int(image)], y, x) for y, x in points]
                output[number, :, row, column] = sum(values) / max(1, len(values))
    return output


def at_point(planes, y, x):
    """Points up to one cell outside take the value of the edge; those further out are 0."""
    height, width = planes.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return planes.new_zeros(len(planes))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    return torch.stack([bilinear(plane, y, x) for plane in planes])


@pytest.mark.parametrize('ratio', [0, 2], ids=['adaptive', '2 points'])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(aligned, ratio):
    assert_same(
        lambda features: roi_align(features, BOXES.to(features), (2, 3), SCALE, ratio, 'avg', aligned),
        lambda features: roi_align_loop(features, BOXES, 2, 3, ratio, aligned),
        make_features(),
    )


def test_roi_align_gradcheck():
    features, boxes = make_features(1, 4, 5).double().requires_grad_(), BOXES[:3].double()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes, 2, SCALE, 0, 'avg', True), features)


def roi_pool_loop(features, boxes, rows, columns):
    """Bins reach from the floor of their start to the ceiling of their end; an empty one is 0."""
    height, width = features.shape[2:]
    output = features.new_zeros(len(boxes), features.shape[1], rows, columns)
    for number, (image, left, top, right, bottom) in enumerate(boxes.double().tolist()):
        left, top, right, bottom = left * SCALE, top * SCALE, (right + 1) * SCALE, (bottom + 1) * SCALE
        for row in range(rows):
            first, last = (top + (row + side) * (bottom - top) / rows for side in (0, 1))
            vertical = slice(min(max(math.floor(first), 0), height), min(max(math.ceil(last), 0), height))
            for column in range(columns):
                first, last = (left + (column + side) * (right - left) / columns for side in (0, 1))
                horizontal = slice(min(max(math.floor(first), 0), width), min(max(math.ceil(last), 0), width))
                cells = features[int(image), :, vertical, horizontal].flatten(1)
                if cells.shape[1] and right > left and bottom > top:
                    output[number, :, row, column] = cells.max(1).values
    return output


def test_roi_pool():
    boxes = torch.cat([BOXES, BACKWARDS])
    assert_same(
        lambda features: roi_pool(features, boxes.to(features), (2, 3), SCALE),
        lambda features: roi_pool_loop(features, boxes, 2, 3),
        make_features(),
    )


@pytest.mark.parametrize('pool', [roi_align, roi_pool], ids=['roi_align', 'roi_pool'])
def test_no_boxes(pool):
    output, gradient = with_gradients(lambda features: pool(features, BOXES[:0], 7, SCALE), make_features())
    assert output.shape == (0, 2, 7, 7) and not gradient.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('pool', [roi_align, roi_pool], ids=['roi_align', 'roi_pool'])
def test_half_precision_is_computed_in_float32(pool, dtype):
    features, boxes = make_features().to(dtype), BOXES.round()
    found = with_gradients(lambda features: pool(features, boxes.to(dtype), 7, SCALE), features)
    expected = with_gradients(lambda features: pool(features.float(), boxes, 7, SCALE).to(dtype), features)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype and torch.equal(one, other)


def deform_roi_pool_loop(features, boxes, offset, rows, columns, ratio, gamma):
    """RoIAlign of each bin for itself, where its offset moves it to."""
    bins = []
    for number, (image, left, top, right, bottom) in enumerate(boxes.double().tolist()):
        width, height = (right - left) * SCALE, (bottom - top) * SCALE
        down, across = ratio or math.ceil(height / rows), ratio or math.ceil(width / columns)
        for row in range(rows):
            for column in range(columns):
                move_x, move_y = (
                    gamma * size * move
                    for size, move in zip((width, height), offset[number, :, row, column], strict=True)
                )
                values = [
                    at_point(
                        features[int(image)],
                        top * SCALE - 0.5 + move_y + (row + (i + 0.5) / down) * height / rows,
                        left * SCALE - 0.5 + move_x + (column + (j + 0.5) / across) * width / columns,
                    )
                    for i in range(down)
                    for j in range(across)
                ]
                bins.append(sum(values) / max(1, len(values)) + features.new_zeros(features.shape[1]))
    return torch.stack(bins).view(len(boxes), rows, columns, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('ratio', [0, 2], ids=['adaptive', '2 points'])
def test_deform_roi_pool(ratio):
    offset = torch.randn(len(BOXES), 2, 2, 3, generator=torch.Generator().manual_seed(1))
    assert_same(
        lambda features, offset: deform_roi_pool(features, BOXES.to(features), offset, (2, 3), SCALE, ratio, 0.2),
        lambda features, offset: deform_roi_pool_loop(features, BOXES, offset, 2, 3, ratio, 0.2),
        *(make_features(), offset),
    )


def test_bins_that_are_not_moved_are_roi_align():
    features = make_features()
    found = with_gradients(lambda features: deform_roi_pool(features, BOXES, None, (2, 3), SCALE), features)
    expected = with_gradients(lambda features: roi_align(features, BOXES, (2, 3), SCALE, 0, 'avg', True), features)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
