from .adaptive_depth import AdaptiveDepthBackbone, find_backbone, num_mandatory, set_skip
from .resnet import AdaptiveDepthResNet, ShallowResNet

__all__ = [
    'AdaptiveDepthBackbone',
    'AdaptiveDepthResNet',
    'ShallowResNet',
    'find_backbone',
    'num_mandatory',
    'set_skip',
]
