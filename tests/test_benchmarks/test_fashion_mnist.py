"""tools/benchmarks/fashion_mnist.py and fashion_scenes.py on a small set in Fashion-MNIST's format."""

import json
import struct

import cv2
import numpy as np
import pytest
import torch
from benchmarks import fashion_mnist, fashion_scenes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS


@pytest.fixture
def data(tmp_path):
    """140 random images and labels, for training and for test."""
    random = np.random.default_rng(0)
    for split in ('train', 't10k'):
        images, labels = random.integers(0, 256, (140, 28, 28), np.uint8), random.integers(0, 10, 140).astype(np.uint8)
        (tmp_path / f'{split}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 0x803, 140, 28, 28) + images.tobytes())
        (tmp_path / f'{split}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 0x801, 140) + labels.tobytes())
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(str(fashion_mnist.CONFIGS / 'resnet50_narrow_fashion_mnist.py'))
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    return cfg


def test_images_are_those_of_the_configs_pipeline(data):
    """In order as tested; shuffled as trained, where neither shift nor flip was drawn."""
    batches = fashion_mnist.Batches(data, 'test')
    (images, labels), *_ = batches.in_order()
    preprocessor = MODELS.build(dict(data.data_preprocessor, type='ClsDataPreprocessor'))
    dataset = DATASETS.build(data.test_dataloader.dataset)
    found = preprocessor(dict(inputs=[dataset[0]['inputs'], dataset[1]['inputs']]))['inputs']
    assert torch.equal(images[:2], found)
    assert labels[:2].tolist() == [
        dataset[0]['data_samples'].gt_label.item(),
        dataset[1]['data_samples'].gt_label.item(),
    ]
    (shuffled, chosen_labels), *_ = batches.shuffled(1, seed=0)
    inner = images[:, 0, 2:-2, 2:-2].flatten(1)
    everywhere = shuffled[:, 0].unfold(1, 28, 1).unfold(2, 28, 1).flatten(1, 2).flatten(2)  # (128, 25, 784)
    for image, label in zip(everywhere[:8], chosen_labels):
        of_both = torch.cat([inner, images[:, 0, 2:-2, 2:-2].flip(2).flatten(1)])
        match = [index % 140 for index, one in enumerate(of_both) if (image == one).all(1).any()]
        assert match and label == labels[match[0]]


def test_rows_are_trained_once_and_reported(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, 'PLOT', tmp_path / 'plot.png')
    monkeypatch.setattr(fashion_mnist, 'RECALIBRATION', 1)
    monkeypatch.setattr(fashion_mnist, 'BATCH', 8)
    results = tmp_path / 'results.json'
    run = lambda rows, **more: fashion_mnist.run(rows, [0], 2, str(tmp_path), results, **more)  # noqa: E731
    run(['R50', 'both'], all_codes=False)
    first = json.loads(results.read_text())
    assert [(r['row'], r['seed']) for r in first] == [('R50', 0), ('both', 0)]
    assert {'FFFF', 'TTTT', 'FFFF recalibrated'} <= first[1]['right'].keys() and 'kd.loss_cls' in first[1]['logged']
    run(['R50', 'both'], all_codes=True)
    again = json.loads(results.read_text())
    assert len(again) == 2 and len(again[1]['right']) == 18 and again[1]['right'].items() >= first[1]['right'].items()
    fashion_mnist.report(again)
    fashion_mnist.print_gradients('both', 0, 2, fashion_mnist.Batches(data, 'train'))
    shown = capsys.readouterr().out
    assert 'super.loss has 1.00 of the norm of super.loss, cosine +1.00' in shown and 'base.loss has ' in shown
    assert '| both | ' in shown and 'both FFFF - R50 alone: ' in shown and (tmp_path / 'plot.png').stat().st_size


def test_the_net_that_is_trained_alone_begins_as_the_super_net(data):
    alone, joint = (fashion_mnist.build(row, 0).state_dict() for row in ('R50', 'both'))
    assert alone.keys() == {name for name in joint if '_skip' not in name}
    assert all(torch.equal(value, joint[name]) for name, value in alone.items())


def test_interval_adds_what_seeds_and_images_leave_open():
    same = np.tile([[1.0, 0.0, -1.0, 0.0]], (3, 1))  # seeds agree: images alone
    assert fashion_mnist.interval(same) == pytest.approx((0, 1.96 * np.sqrt(2 / 3) / 2))
    constant = np.repeat([[1.0], [0.0], [-1.0]], 4, axis=1)  # images agree: seeds alone, t of 2 degrees of freedom
    assert fashion_mnist.interval(constant) == pytest.approx((0, 4.3027 / np.sqrt(3)), rel=1e-4)
    assert fashion_mnist.mcnemar(np.array([1, 1, 1, 1, 0, -1])) == pytest.approx(2 * 6 / 32)


def test_scenes_are_the_same_every_time_and_boxes_hold_what_can_be_seen(data, tmp_path):
    for folder in ('first', 'again'):
        fashion_scenes.write_split(tmp_path, tmp_path / folder, 'test', 3, 96)
    name = 'annotations/instances_test.json'
    content = json.loads((tmp_path / 'first' / name).read_text())
    assert content == json.loads((tmp_path / 'again' / name).read_text()) and len(content['images']) == 3
    for image in content['images']:
        files = [(tmp_path / folder / 'test' / image['file_name']).read_bytes() for folder in ('first', 'again')]
        assert files[0] == files[1]
        assert cv2.imread(str(tmp_path / 'first/test' / image['file_name'])).shape == (96, 96, 3)
    assert len(content['categories']) == 10
    for thing in content['annotations']:
        x, y, width, height = thing['bbox']
        assert 0 <= x and x + width <= 96 and 0 <= y and y + height <= 96 and 16 <= thing['area'] <= width * height


def test_a_thing_that_is_hidden_is_left_out():
    """White squares that fill their images: areas that can be seen are disjoint, and add up to what is covered."""
    white = np.full((5, 28, 28), 255, np.uint8)
    for seed in range(20):
        random = np.random.default_rng(seed)
        _, found = fashion_scenes.compose(random, white, np.arange(5), 64)
        assert found and sum(area for *_, area in found) <= 64 * 64
        assert all(area >= 0.4 * 20**2 for *_, area in found)
