"""Grad-CAM of classifiers and detectors: the maps by hand, the picture, and what is refused."""

import sys

import cv2
import mmcv
import numpy as np
import pytest
import torch
from classifiers import classifier, make_images, small_config
from test_tools import fails
from tiny import build, load_tool, small_images, tiny_config

from adn_mmdet import SkipConfig
from adn_mmdet.config import load_config
from adn_mmdet.inference.cam import activation_maps

CODES = [SkipConfig.super_net(4), SkipConfig.base_net(4)]


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A classifier's config, weights and an image."""
    folder = tmp_path_factory.mktemp('cam')
    config = small_config(folder, make_images(folder / 'data', dict(val=1)))
    torch.save(classifier(3).state_dict(), folder / 'weights.pth')
    return config, str(folder / 'weights.pth'), str(folder / 'data' / 'val' / 'dog' / '0.png')


def test_maps_of_a_classifier_are_those_of_grad_cam(small):
    picture, what, maps = activation_maps(load_config(small[0]), *small[1:], 3, CODES, label=1)
    assert what == 'dog (1)' and picture.shape == (32, 32, 3) and (picture.min(), picture.max()) == (0, 1)
    names = [f'layer3.{index}' for index in range(6)]
    assert [*maps['FFFF']] == names and [*maps['TTTT']] == names[:3]
    model = classifier(3).eval()
    image = mmcv.imread(small[2])
    image = cv2.resize(image, (48, 40))[4:36, 8:40, ::-1]
    mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
    inputs = (torch.from_numpy(image.copy()).permute(2, 0, 1).float() - mean) / std
    for code, block in (('FFFF', 4), ('TTTT', 2)):
        kept = []
        handle = model.backbone.layer3[block].register_forward_hook(lambda *args, kept=kept: kept.append(args[2]))
        with model.backbone.using_skip(code):
            logits = model(inputs[None])
        handle.remove()
        (gradient,) = torch.autograd.grad(logits[0, 1], kept[0])
        expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)[0].clamp(min=0).detach().numpy()
        expected = cv2.resize((expected - expected.min()) / (expected.max() - expected.min() + 1e-7), (32, 32))
        assert np.allclose(maps[code][names[block]], expected, atol=1e-4)


@pytest.mark.parametrize('name', ['faster_rcnn', 'retinanet'])
def test_maps_of_a_detector(name, tmp_path):
    cfg = small_images(tiny_config(name, frozen_stages=1))
    torch.save(build(cfg).state_dict(), tmp_path / 'weights.pth')
    mmcv.imwrite(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8), str(tmp_path / 'a.png'))
    scores = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    scores.score_thr = 0.0
    picture, what, maps = activation_maps(cfg, tmp_path / 'weights.pth', tmp_path / 'a.png', 1, CODES)
    assert any(what.startswith(shape) for shape in ('circle', 'rectangle', 'triangle'))
    assert ('in the box' in what) == (name == 'faster_rcnn')
    assert {code: [*row] for code, row in maps.items()} == {
        'FFFF': ['layer1.0', 'layer1.1', 'layer1.2'], 'TTTT': ['layer1.0', 'layer1.1']
    }  # fmt: skip
    for heat in [heat for row in maps.values() for heat in row.values()]:
        assert heat.shape == picture.shape[:2] and 0 <= heat.min() and heat.max() <= 1 and heat.std() > 0


def test_script_draws_one_picture(small, tmp_path, capsys):
    out = tmp_path / 'new' / 'cam.png'
    assert load_tool('cam').main([*small, '--out', str(out)]) == 0
    assert 'cam.png: stage 3, FFFF, TTTT, ' in capsys.readouterr().out
    height, width = cv2.imread(str(out)).shape[:2]
    assert width > 2 * height  # seven columns, two rows


@pytest.mark.parametrize(
    'options, message',
    [
        (['--stage', '5'], '--stage should be from 1 to 4, but got 5'),
        (['--class', '3'], '--class should be from 0 to 2, but got 3'),
        (['--skip', 'TTT'], 'TTT'),
        (['--out', 'cam.txt'], '--out should be a .png file, but got cam.txt'),
    ],
    ids=str,
)
def test_what_is_refused(small, options, message, elsewhere, capsys):
    fails(load_tool('cam').main, [*small, *options], capsys, message)


def test_images_that_cannot_be_read(small, tmp_path, capsys):
    main = load_tool('cam').main
    fails(main, [*small[:2], str(tmp_path / 'no.png'), '--out', f'{tmp_path}/a.png'], capsys, 'there is no image')
    (tmp_path / 'no.png').write_bytes(b'no')
    fails(
        main, [*small[:2], str(tmp_path / 'no.png'), '--out', f'{tmp_path}/a.png'], capsys, 'cannot be read as an image'
    )


def test_without_grad_cam_the_script_says_how_to_install_it(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    fails(load_tool('cam').main, [*small, '--out', f'{tmp_path}/a.png'], capsys, 'pip install --no-deps grad-cam ttach')
