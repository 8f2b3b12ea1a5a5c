from .adaptive_depth import AdaptiveDepthBackbone, find_backbone, num_mandatory, set_skip
from .compiled import compile_stages
from .features import extract_feats, unwrap
from .resnet import AdaptiveDepthResNet, ShallowResNet
from .sharing import sharing

__all__ = [
    'AdaptiveDepthBackbone',
    'AdaptiveDepthResNet',
    'ShallowResNet',
    'compile_stages',
    'extract_feats',
    'find_backbone',
    'num_mandatory',
    'set_skip',
    'sharing',
    'unwrap',
]
