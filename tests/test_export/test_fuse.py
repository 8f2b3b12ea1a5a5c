import copy

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from tiny import build, randomize_norms, tiny_config
from torch import nn
from torch.optim.swa_utils import AveragedModel

from adn_mmdet import AdaptiveDepthResNet, SkipConfig, UserError
from adn_mmdet.export.hubconf import backbone
from adn_mmdet.export.sub_net import plain_detector


def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def assert_close(outputs, expected):
    for output, other in zip(outputs, expected, strict=True):
        assert ((output - other).norm() / other.norm()).item() <= 1e-5


class Wrapper(nn.Module):
    """As DDP wraps a detector."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@torch.no_grad()
@pytest.mark.parametrize('wrap', [lambda net: net, Wrapper, AveragedModel], ids=['detector', 'DDP', 'EMA'])
def test_after_mmcv_has_fused_a_detector_only_the_super_net_runs(wrap):
    detector = build(tiny_config()).eval()
    expected = detector.extract_feat(images())
    wrapped = wrap(detector).eval()
    assert fuse_conv_bn(wrapped) is wrapped
    fused = getattr(wrapped, 'module', wrapped)
    assert isinstance(fused.backbone.layer1[0].bn1, nn.Identity)  # mmcv has really changed it
    assert_close(fused.extract_feat(images()), expected)
    for code in SkipConfig.all(4)[1:]:
        with pytest.raises(UserError, match=r'fuse_conv_bn has folded .* tools/export_sub_net.py --fuse'):
            with fused.backbone.using_skip(code):
                fused.extract_feat(images())


@torch.no_grad()
def test_one_set_of_norms_is_fused_rightly_for_all_codes():
    backbone = AdaptiveDepthResNet(50, base_channels=8, skip_aware_norm=False).eval()
    randomize_norms(backbone)
    fused = fuse_conv_bn(copy.deepcopy(backbone))
    for code in SkipConfig.all(4):
        assert_close(fused(images(), code), backbone(images(), code))


@torch.no_grad()
@pytest.mark.parametrize(
    ('code', 'options'),
    [('FFFF', {}), ('TFTF', {}), ('TTTT', dict(depth=101)), ('TTFF', dict(avg_down=True, deep_stem=True))],
    ids=str,
)
def test_a_fused_export(code, options):
    cfg = tiny_config('retinanet', **options)
    detector = build(cfg).eval()
    detector.backbone.set_skip(code)
    fused_cfg, fused = plain_detector(cfg, detector, detector.backbone.skip, fuse=True)
    assert not [module for module in fused.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert_close(fused.extract_feat(images()), detector.extract_feat(images()))
    assert_close(fused.backbone(images()), detector.backbone(images()))
    settings = {
        key: value
        for key, value in fused_cfg.model.backbone.items()
        if key not in ('type', 'repo_or_dir', 'source', 'model')
    }
    built = backbone(**settings)  # as torch.hub does, which the config's type is
    built.load_state_dict(fused.backbone.state_dict())
    built.eval()
    for output, other in zip(built(images()), fused.backbone(images()), strict=True):
        assert torch.equal(output, other)
