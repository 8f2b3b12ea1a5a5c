from .adaptive_depth import AdaptiveDepthBackbone, find_backbone, num_mandatory, set_skip
from .compiled import compile_stages
from .csp_next import AdaptiveDepthCSPDarknet, AdaptiveDepthCSPNeXt
from .features import extract_feats, unwrap
from .mobilenet_v2 import AdaptiveDepthMobileNetV2, ShallowMobileNetV2
from .resnet import AdaptiveDepthRegNet, AdaptiveDepthResNet, AdaptiveDepthResNeXt, ShallowResNet
from .sharing import sharing
from .simple_pyramid import SimpleFeaturePyramid
from .ssd_head import PredictingSSDHead
from .swin import AdaptiveDepthSwin
from .vit import AdaptiveDepthViT

__all__ = [
    'AdaptiveDepthBackbone',
    'AdaptiveDepthCSPDarknet',
    'AdaptiveDepthCSPNeXt',
    'AdaptiveDepthMobileNetV2',
    'AdaptiveDepthRegNet',
    'AdaptiveDepthResNeXt',
    'AdaptiveDepthResNet',
    'AdaptiveDepthSwin',
    'AdaptiveDepthViT',
    'PredictingSSDHead',
    'ShallowMobileNetV2',
    'ShallowResNet',
    'SimpleFeaturePyramid',
    'compile_stages',
    'extract_feats',
    'find_backbone',
    'num_mandatory',
    'set_skip',
    'sharing',
    'unwrap',
]
