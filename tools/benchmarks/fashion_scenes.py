"""Composes scenes of Fashion-MNIST's images, for detection: COCO format, the same every time.

python tools/benchmarks/fashion_scenes.py data/fashion_mnist data/fashion_scenes

A scene holds 8 to 20 pieces of clothing of random size and brightness on a textured ground; they overlap, and one that
would be hidden too far is left out. Training scenes are made of training images, test scenes of test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmpretrain.datasets import FashionMNIST

SPLITS = ('train', 'test')
NUM_THINGS = (8, 20)
SIZES = (20, 48)  # px of an image, of which clothing fills the greater part
MIN_VISIBLE_SHARE = 0.4
CLOTH = 24  # the ground of Fashion-MNIST's images is black: 0 of 255


def ground(random: np.random.Generator, size: int) -> np.ndarray:
    """Clouds of two sizes, (size, size), of about 0 to 255."""
    clouds = [random.uniform(-1, 1, (cells, cells)) for cells in (4, 24)]
    layers = [cv2.resize(cloud, (size, size), interpolation=cv2.INTER_CUBIC) for cloud in clouds]
    return random.uniform(40, 200) + random.uniform(10, 50) * layers[0] + random.uniform(5, 30) * layers[1]


def compose(
    random: np.random.Generator, things: np.ndarray, labels: np.ndarray, size: int
) -> tuple[np.ndarray, list[tuple[int, list[int], int]]]:
    """Draw one scene.

    Args:
        random: source of all that is random.
        things: images of the split, uint8 (N, 28, 28).
        labels: their classes, (N,).
        size: height and width of the scene in pixels.

    Returns:
        The scene, uint8 (size, size), and of every thing its class, and of what can be seen of it the box (x, y, width,
        height) and the area.
    """
    canvas = ground(random, size)
    covered = np.zeros((size, size), bool)
    found = []
    for index in random.integers(len(things), size=random.integers(NUM_THINGS[0], NUM_THINGS[1] + 1)):
        side = int(random.integers(SIZES[0], SIZES[1] + 1))
        x, y = (int(corner) for corner in random.integers(0, size - side + 1, 2))
        thing = cv2.resize(things[index], (side, side), interpolation=cv2.INTER_LINEAR)
        if random.random() < 0.5:
            thing = thing[:, ::-1]
        window = np.s_[y : y + side, x : x + side]
        cloth = thing > CLOTH
        visible = cloth & ~covered[window]  # front to back: what comes later lies behind
        if visible.sum() < max(16, MIN_VISIBLE_SHARE * cloth.sum()):
            continue
        covered[window] |= cloth
        canvas[window][visible] = (random.uniform(0.5, 1) * thing + random.uniform(0, 40))[visible]
        left, top, width, height = cv2.boundingRect(visible.astype(np.uint8))
        found.append((int(labels[index]), [x + left, y + top, width, height], int(visible.sum())))
    canvas += random.normal(0, random.uniform(2, 10), canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), found


def write_split(source: Path, target: Path, split: str, num_scenes: int, size: int) -> None:
    """Write the scenes of a split, ``<split>/000001.png`` …, and ``annotations/instances_<split>.json``."""
    dataset = FashionMNIST(str(source), split=split, test_mode=split == 'test', pipeline=[], download=False)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    things = np.stack([np.array(info['img']) for info in infos])
    labels = np.array([int(info['gt_label']) for info in infos])
    categories = [{'id': number, 'name': name} for number, name in enumerate(dataset.metainfo['classes'], 1)]
    content: dict[str, Any] = dict(images=[], annotations=[], categories=categories)
    (target / split).mkdir(parents=True, exist_ok=True)
    for number in range(1, num_scenes + 1):
        scene, found = compose(np.random.default_rng([SPLITS.index(split), number]), things, labels, size)
        name = f'{number:06d}.png'
        if not cv2.imwrite(str(target / split / name), scene):
            raise OSError(f'{target / split / name} could not be written')
        content['images'].append(dict(id=number, file_name=name, height=size, width=size))
        for label, box, area in found:
            ids = dict(id=len(content['annotations']) + 1, image_id=number, category_id=label + 1, iscrowd=0)
            content['annotations'].append(ids | dict(bbox=box, area=area))
    (target / 'annotations').mkdir(exist_ok=True)
    (target / f'annotations/instances_{split}.json').write_text(json.dumps(content))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help="Fashion-MNIST's four files, unpacked")
    parser.add_argument('target', type=Path, help='a new folder')
    parser.add_argument('--num-train', type=int, default=4000, help='training scenes')
    parser.add_argument('--num-test', type=int, default=1000, help='test scenes')
    parser.add_argument('--size', type=int, default=160, help='height and width in pixels')
    args = parser.parse_args()
    for split, num_scenes in zip(SPLITS, (args.num_train, args.num_test)):
        write_split(args.source, args.target, split, num_scenes, args.size)


if __name__ == '__main__':
    main()
