"""Damages what users give: annotation files, skip codes and command lines. ``tests/fuzz.py`` runs it by hand."""

from __future__ import annotations

import argparse
import copy
import io
import math
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from fuzz import Outcomes, damage
from mmdet.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.registry import METRICS, init_default_scope
from pycocotools import mask as coco_mask
from tiny import ROOT
from torch.utils.data import DataLoader

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.config import load_config, override
from adn_mmdet.datasets.images import name_unreadable
from adn_mmdet.datasets.preparation import prepare_data
from adn_mmdet.explain import DEBUG, explain
from adn_mmdet.keys import parts

CLASSES = ('circle', 'square')


def annotation_file() -> dict[str, Any]:
    """Three images of 48×64 (height × width): polygons, both kinds of RLE, a crowd, and one image without objects."""
    outline = [4, 4, 30, 4, 30, 28, 4, 28]
    filled = [0, 48 * 20, 48 * 44]
    packed = coco_mask.encode(np.asfortranarray(np.tri(48, 64, dtype=np.uint8)))['counts'].decode()
    masks: list[Any] = [
        [outline],
        {'size': [48, 64], 'counts': filled},
        {'size': [48, 64], 'counts': packed},
        [outline],
    ]
    common = {'bbox': [4, 4, 26, 24], 'area': 624, 'iscrowd': 0}
    annotations = [
        {'id': 1 + index, 'image_id': 1 + index % 2, 'category_id': 1 + index // 2, 'segmentation': mask, **common}
        for index, mask in enumerate(masks)
    ]
    annotations[1]['iscrowd'] = 1
    return {
        'info': {'year': 2024},
        'images': [{'id': n, 'file_name': f'{n}.png', 'height': 48, 'width': 64} for n in (1, 2, 3)],
        'annotations': annotations,
        'categories': [{'id': 1 + index, 'name': name} for index, name in enumerate(CLASSES)],
    }


def data_config(folder: Path, split: str) -> Config:
    init_default_scope('mmdet')
    dataset = dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='fuzzed.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=CLASSES),
        test_mode=split == 'test',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
    )
    evaluator = dict(type='ExactCocoMetric', metric=['bbox', 'segm'], ann_file=str(folder / 'fuzzed.json'))
    content = {f'{split}_dataloader': dict(dataset=dataset), f'{split}_evaluator': evaluator}
    return Config(dict(model=dict(), work_dir=str(folder / 'run'), **content))


def load_and_evaluate(cfg: Config, split: str) -> dict[str, float]:
    """What a run does with the data: reads every sample; a test counts them as if all had been found."""
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    loader = name_unreadable(DataLoader(dataset, batch_size=None, collate_fn=lambda sample: sample))
    samples = list(loader)
    assert samples, 'a data set of nothing'
    if split == 'train':
        return {}
    metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    for sample in samples:
        boxes, labels = sample['gt_bboxes'].tensor, torch.as_tensor(sample['gt_bboxes_labels'])
        masks = sample['gt_masks'].to_tensor(torch.bool, 'cpu')
        found = dict(bboxes=boxes, labels=labels, scores=torch.ones(len(boxes)), masks=masks)
        metric.process({}, [dict(img_id=sample['img_id'], ori_shape=sample['ori_shape'], pred_instances=found)])
    values = metric.evaluate(len(samples))
    assert all(math.isnan(value) or 0 <= value <= 1 for value in values.values()), values
    return values


def annotations(number: int, seed: int, folder: Path) -> Outcomes:
    """Change, cut and flip an annotation file, then prepare it as a run does, load it and evaluate on it."""
    generator, outcomes = random.Random(seed), Outcomes()
    for name in (1, 2, 3):
        cv2.imwrite(str(folder / f'{name}.png'), np.zeros((48, 64, 3), np.uint8))
    for _ in range(number):
        (folder / 'fuzzed.json').write_bytes(damage(annotation_file(), generator))
        split = generator.choice(['train', 'test'])
        cfg = data_config(folder, split)
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter('ignore')
                prepare_data(cfg, split)
                load_and_evaluate(cfg, split)
        except UserError as error:
            assert '\n' not in str(error) and len(str(error)) < 2000, error
            outcomes['refused'] += 1
        else:
            outcomes['used'] += 1
        shutil.rmtree(folder / 'run', ignore_errors=True)
    return outcomes


def skip_codes(number: int, seed: int, folder: Path) -> Outcomes:
    """Codes of random letters: refused, or those letters, T and F in either case."""
    generator, outcomes = random.Random(seed), Outcomes()
    for _ in range(number):
        letters = generator.choice(['TF', 'TFtf', 'TFtf, ', 'TFtfﬀＴХ0\0\n\ud800'])
        text = ''.join(generator.choices(letters, k=generator.choice([0, 1, 3, 4, 4, 4, 5, 9, 99])))
        try:
            codes = SkipConfig.parse_list(text, 4)
        except UserError as error:
            assert '\n' not in str(error)
            outcomes['refused'] += 1
        else:
            given = [code.strip().upper() for code in text.split(',')]
            assert all(code.isascii() for code in given) and [*map(str, codes)] == [*dict.fromkeys(given)], text
            outcomes['read'] += 1
    return outcomes


def command_lines(number: int, seed: int, folder: Path) -> Outcomes:
    """Options of the demo with letters changed, and odd values: one line, or a config that has that value."""
    generator, outcomes = random.Random(seed), Outcomes()
    whole = load_config(str(ROOT / 'configs' / 'mask_rcnn_r50_adn_shapes.py'))
    keys = [path for path, _ in parts(whole._cfg_dict) if path]
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    values = [
        '1',
        '-1',
        '0',
        'nan',
        '1e999',
        '9' * 5000,
        'None',
        'x',
        '',
        '[1,2]',
        '(',
        '[(1,2]',
        'True',
        '../x',
        '=',
        '\0',
    ]
    for _ in range(number):
        key = generator.choice(keys)
        if generator.random() < 0.7:
            place = generator.randrange(len(key))
            key = key[:place] + generator.choice(['', 'x', '.', '0', key[place] * 2]) + key[place + 1 :]
        argument = key + generator.choice(['=', '=', '=', '=', '', '==', ' = ']) + generator.choice(values)
        cfg = copy.deepcopy(whole)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                options = parser.parse_args(['--cfg-options', argument]).cfg_options
                override(cfg, options)
        except Exception as error:
            line = explain(error)
            assert '\n' not in line and DEBUG not in line, (argument, line)
            outcomes['refused'] += 1
        else:
            held = dict(parts(cfg._cfg_dict))
            assert all(held[name] == value for name, value in options.items()), argument
            outcomes['read'] += 1
    return outcomes


READERS: dict[str, Callable[[int, int, Path], Outcomes]] = {
    'annotations': annotations,
    'skip-codes': skip_codes,
    'command-lines': command_lines,
}
