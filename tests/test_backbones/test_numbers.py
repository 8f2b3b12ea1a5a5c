"""Sizes and costs of the paper's networks, full ones, on the meta device, where nothing is computed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adn_mmdet.backbones import (
    AdaptiveDepthMobileNetV2,
    AdaptiveDepthResNet,
    AdaptiveDepthSwin,
    AdaptiveDepthViT,
    num_mandatory,
)
from adn_mmdet.backbones.swin import ImageNetSwin

CLASSES = 1000
# By network: mandatory blocks, norms with a twin, their parameters, parameters in all and of the base-net trained
# alone (M), GMACs at 224 of super-net and base-net; and the paper's own GMACs where a code cannot reach them.
TABLE = {
    'ResNet-50': ([2, 2, 3, 2], 27, 26_112, 25.583, 17.11, 4.09, 2.56, None),
    'ResNet-101': ([2, 2, 12, 2], 54, 53_760, 44.603, 27.17, 7.80, 4.53, None),
    'MobileNetV2': ([1, 2, 2, 2, 2], 34, 22_672, 3.528, 2.934, 0.301, 0.205, (0.32, 0.25)),
    'ViT-B/16': ([2, 2, 2, 2], 16, 24_576, 86.592, 58.22, 17.56, 11.75, None),
    'ViT-B/32': ([2, 2, 2, 2], 16, 24_576, 88.249, 59.87, 4.41, 2.98, None),
    'Swin-T': ([1, 1, 3, 1], 15, 14_208, 28.303, 15.31, 4.49, 2.34, (4.49, 2.69)),
}
NETWORKS = {
    'ResNet-50': lambda: (AdaptiveDepthResNet(50), 2048),
    'ResNet-101': lambda: (AdaptiveDepthResNet(101), 2048),
    'MobileNetV2': lambda: (AdaptiveDepthMobileNetV2(out_indices=(7,)), 1280),
    'ViT-B/16': lambda: (AdaptiveDepthViT('b', patch_size=16), 768),
    'ViT-B/32': lambda: (AdaptiveDepthViT('b', patch_size=32), 768),
    'Swin-T': lambda: (ImageNetSwin('tiny'), 768),
}


def on_meta(build):
    """A full network without its weights; Swin's constructor reads numbers from a tensor, so that it needs a CPU."""
    if build in (NETWORKS['Swin-T'], AdaptiveDepthSwin):
        built = build()
        (built[0] if isinstance(built, tuple) else built).to('meta')
    else:
        with torch.device('meta'):
            built = build()
    (built[0] if isinstance(built, tuple) else built).eval()
    return built


def gmacs(backbone, code, size=(224, 224)):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.zeros(1, 3, *size, device='meta'), code)
    return counter.get_total_flops() / 2e9


def count(modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize('name', TABLE)
def test_numbers(name):
    mandatory, num_norms, num_extra, params, base_params, super_gmacs, base_gmacs, papers = TABLE[name]
    backbone, channels = on_meta(NETWORKS[name])
    letters = [path.mandatory for path in backbone.sub_paths]
    is_block = {'MobileNetV2': 'InvertedResidual', 'Swin-T': 'Block'}.get(name, '')
    blocks = [[part for part in parts if type(part).__name__.endswith(is_block)] for parts in letters]
    layers = (backbone.layer1, backbone.layer7) if name == 'MobileNetV2' else ()
    blocks = [[block for block in part if not any(block is layer[0] for layer in layers)] for part in blocks]
    assert [len(part) for part in blocks] == mandatory
    base = 'T' * backbone.num_stages
    head = channels * CLASSES
    assert len(backbone.idle_norms(base)) == num_norms
    assert sum(p.numel() for key, p in backbone.named_parameters() if '_skip' in key) == num_extra
    total = count([backbone]) + head + CLASSES
    assert total / 1e6 == pytest.approx(params, abs=5e-4)
    unused = count([*backbone.skipped_blocks(base), *backbone.idle_norms(base)])
    assert (total - unused) / 1e6 == pytest.approx(base_params, abs=5e-3)
    found = [gmacs(backbone, code) + head / 1e9 for code in (base.replace('T', 'F'), base)]
    digits = 5e-4 if super_gmacs < 1 else 5e-3
    assert found == pytest.approx([super_gmacs, base_gmacs], abs=digits)
    if papers:  # no split of the authors' code has these
        assert abs(found[1] - papers[1]) > 0.04


# GMACs that each letter saves at 224 pixels.
@pytest.mark.parametrize(
    'name, saved',
    [
        ('Swin-T', [0.376, 0.362, 1.063, 0.351]),
        ('MobileNetV2', [0.0257, 0.0110, 0.0206, 0.0227, 0.0155]),
        ('ViT-B/16', [1.454] * 4),
    ],
)
def test_savings_of_each_letter(name, saved):
    backbone, _ = on_meta(NETWORKS[name])
    codes = [''.join('T' if other == letter else 'F' for other in range(len(saved))) for letter in range(len(saved))]
    whole = gmacs(backbone, 'F' * len(saved))
    assert [whole - gmacs(backbone, code) for code in codes] == pytest.approx(saved, rel=3e-3)


# Without norms, which mmengine's counter adds (96.0 and 50.0; 5.97 and 3.94).
@pytest.mark.parametrize(
    'build, expected',
    [(AdaptiveDepthSwin, (95.56, 49.70)), (lambda: AdaptiveDepthMobileNetV2(out_indices=(1, 2, 4, 6)), (5.70, 3.75))],
    ids=['Swin-T', 'MobileNetV2'],
)
def test_cost_as_backbones_of_detectors(build, expected):
    backbone = on_meta(build)
    found = [gmacs(backbone, letter * backbone.num_stages, (800, 1280)) for letter in 'FT']
    assert found == pytest.approx(expected, rel=3e-3)


def test_splits_of_other_depths():
    for blocks, mandatory in (
        ((3, 4, 6, 3), [2, 2, 3, 2]),
        ((3, 8, 36, 3), [2, 4, 18, 2]),
        ((2, 2, 2, 2), [1, 1, 1, 1]),
        ((2, 2, 6, 2), [1, 1, 3, 1]),
        ((1, 2, 7, 12), [1, 1, 4, 6]),
    ):
        assert [num_mandatory(number) for number in blocks] == mandatory
    with torch.device('meta'):
        backbone = AdaptiveDepthResNet(152)
    assert [len(path.mandatory) for path in backbone.sub_paths] == [2, 4, 18, 2]
