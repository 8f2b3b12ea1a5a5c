from collections import Counter

import pytest
import torch
from mmengine.runner import autocast
from tiny import build, tiny_config
from torch import nn

from adn_mmdet import SkipConfig
from adn_mmdet.backbones.resnet import AdaptiveDepthBottleneck
from adn_mmdet.evaluation import sharing
from adn_mmdet.evaluation.shared_calls import shared_calls

CODES = SkipConfig.all(4)


def feats(detector, images, code):
    with detector.backbone.using_skip(code):
        return detector.extract_feat(images)


@pytest.mark.parametrize(
    'backbone, codes, amp',
    [
        ({}, CODES, False),
        ({}, CODES, True),
        ({}, CODES[::-1], False),
        (dict(deep_stem=True, avg_down=True), CODES[5:] + CODES[:5], False),
    ],
)
@torch.no_grad()
def test_every_code_is_what_it_is_alone(backbone, codes, amp):
    detector = build(tiny_config(**backbone)).eval()
    batches = torch.randn(2, 2, 3, 64, 64)
    with autocast(enabled=amp):
        alone = [{code: feats(detector, images, code) for code in codes} for images in batches]
    assert (alone[0][CODES[0]][0].dtype == torch.bfloat16) == amp
    # Two batches in one context: the second must not get the first one's features.
    with sharing(detector), autocast(enabled=amp):
        shared = [{code: feats(detector, images, code) for code in codes} for images in batches]
    for first, second in zip(alone, shared, strict=True):
        for code in codes:
            assert all(map(torch.equal, first[code], second[code]))
    assert not torch.equal(alone[0][CODES[0]][0], alone[0][CODES[-1]][0])


def count_runs(detector):
    """By what: how many residual blocks, stem and lateral convolutions have run."""
    runs = Counter()
    for module in detector.modules():
        if isinstance(module, AdaptiveDepthBottleneck):
            module.register_forward_hook(lambda *_: runs.update(['block']))
    detector.backbone.conv1.register_forward_hook(lambda *_: runs.update(['stem']))
    for conv in detector.neck.lateral_convs:
        conv.conv.register_forward_hook(lambda *_: runs.update(['lateral']))
    return runs


@torch.no_grad()
def test_what_is_common_runs_once():
    detector = build(tiny_config()).eval()
    runs, images = count_runs(detector), torch.randn(1, 3, 64, 64)
    for code in CODES:
        feats(detector, images, code)
    assert runs == dict(block=200, stem=16, lateral=64)
    runs.clear()
    with sharing(detector):
        for code in CODES:
            feats(detector, images, code)
    assert runs == dict(block=93, stem=1, lateral=2 + 4 + 8 + 16)
    runs.clear()
    feats(detector, images, CODES[0])  # outside nothing is remembered, not even after an exception
    with pytest.raises(KeyError), sharing(detector):
        raise KeyError
    feats(detector, images, CODES[0])
    assert runs == dict(block=32, stem=2, lateral=8)
    assert not any('forward' in vars(module) or 'run_stem' in vars(module) for module in detector.modules())


@torch.no_grad()
def test_a_tensor_that_was_written_to_is_another_one():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    module, x = Twice(), torch.ones(3)
    with shared_calls([(module, 'forward')]):
        first = module(x)
        assert module(x) is first
        first.add_(1)
        assert module(x).tolist() == [2, 2, 2]
        x.add_(1)
        assert module(x).tolist() == [4, 4, 4]
