import copy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.runner import autocast
from tiny import build, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.backbones.resnet import AdaptiveDepthBottleneck
from adn_mmdet.backbones.sharing import sharing

CODES = SkipConfig.all(4)


def feats(detector, images, code):
    with detector.backbone.using_skip(code):
        return detector.extract_feat(images)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    'backbone, codes, amp',
    [
        ({}, CODES, False),
        ({}, CODES, True),
        ({}, CODES[::-1], False),
        (dict(deep_stem=True, avg_down=True), CODES[5:] + CODES[:5], False),
    ],
)
def test_every_code_is_what_it_is_alone(backbone, codes, amp, mode):
    with mode():
        same_as_alone(backbone, codes, amp)


def same_as_alone(backbone, codes, amp):
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
    outputs = []

    def count(module, inputs, output):
        if not any(output is other for other in outputs):  # one that was computed, not remembered
            outputs.append(output)
            runs.update(['lateral'])

    for conv in detector.neck.lateral_convs:
        conv.conv.register_forward_hook(count)
    return runs


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_what_is_common_runs_once(mode):
    detector = build(tiny_config()).eval()
    runs, images = count_runs(detector), torch.randn(1, 3, 64, 64)
    before = [set(vars(module)) for module in detector.modules()]
    with mode():
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
    assert [set(vars(module)) for module in detector.modules()] == before


def test_threads_and_blocks_in_one_another_have_their_own_memory():
    detector = build(tiny_config()).eval()
    images = torch.randn(4, 1, 3, 64, 64)

    @torch.no_grad()
    def run(image):
        with sharing(detector):
            found = [feats(detector, image, code) for code in CODES]
            with sharing(detector):
                found += [feats(detector, image, code) for code in CODES]
            return [*found, feats(detector, image, CODES[-1])]

    with torch.no_grad():
        alone = [[feats(detector, image, code) for code in (*CODES, *CODES, CODES[-1])] for image in images]
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(run, images.repeat(3, 1, 1, 1, 1)))
    for one, other in zip(alone * 3, shared, strict=True):
        assert all(
            torch.equal(a, b) for feats_a, feats_b in zip(one, other, strict=True) for a, b in zip(feats_a, feats_b)
        )


@torch.no_grad()
def test_a_generator_and_a_copy_inside():
    detector, images = build(tiny_config()).eval(), torch.randn(1, 3, 64, 64)

    def depths():
        with sharing(detector):
            for code in CODES:
                yield feats(detector, images, code)

    first = depths()
    next(first)
    copied = copy.deepcopy(detector)
    with sharing(copied):
        feats(copied, images, CODES[0])
        for parameter in copied.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(feats(copied, images, CODES[0])[0], feats(detector, images, CODES[0])[0])
    second = depths()
    next(second)
    first.close()  # before the one that was started after it
    assert torch.equal(next(second)[0], feats(detector, images, CODES[1])[0])
    second.close()
    runs = count_runs(detector)
    feats(detector, images, CODES[0])
    feats(detector, images, CODES[0])
    assert runs['stem'] == 2


def test_nothing_is_remembered_where_gradients_or_statistics_need_the_calls():
    detector, images = build(tiny_config()).eval(), torch.randn(1, 3, 64, 64)
    runs = count_runs(detector)
    with sharing(detector):
        for _ in range(2):
            feats(detector, images, CODES[0])[0].sum().backward()
        assert runs['stem'] == 2
        detector.train()
        with torch.no_grad():
            for _ in range(2):
                feats(detector, images, CODES[0])
        assert runs['stem'] == 4


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_a_tensor_that_was_written_to_is_another_one(mode):
    detector = build(tiny_config()).eval()
    with mode():
        images = torch.randn(1, 3, 64, 64)
        alone = feats(detector, images, CODES[0])[0], feats(detector, images + 1, CODES[0])[0]
        with sharing(detector):
            for output in detector.backbone(images):
                output.add_(1)
            assert torch.equal(feats(detector, images, CODES[0])[0], alone[0])
            assert torch.equal(feats(detector, images, CODES[0])[0], alone[0])
            images.add_(1)
            assert torch.equal(feats(detector, images, CODES[0])[0], alone[1])


@torch.no_grad()
def test_weights_that_change_are_seen():
    detector, images = build(tiny_config()).eval(), torch.randn(1, 3, 64, 64)
    with sharing(detector):
        before = feats(detector, images, CODES[0])
        for module in (detector.backbone.conv1, detector.backbone.layer4[0].bn1, detector.neck.lateral_convs[0].conv):
            module.weight.mul_(1.1)
            after = feats(detector, images, CODES[0])
            assert not torch.equal(after[0], before[0])
            before = after
    assert torch.equal(feats(detector, images, CODES[0])[0], before[0])


@torch.no_grad()
def test_the_precision_is_part_of_the_call():
    detector, images = build(tiny_config()).eval(), torch.randn(1, 3, 64, 64)
    with sharing(detector):
        for enabled in (True, False, True):
            with autocast(enabled=enabled):
                assert (feats(detector, images, CODES[0])[0].dtype == torch.float32) != enabled


def test_a_net_without_depths_is_refused():
    with pytest.raises(UserError, match='one adaptive-depth backbone'), sharing(torch.nn.Linear(1, 1)):
        pass
