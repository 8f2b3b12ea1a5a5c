"""Detectors whose depth is a run-time setting. Importing the package registers everything it has."""

from .versions import require_stack

require_stack()

from .backbones import (  # noqa: E402
    AdaptiveDepthMobileNetV2,
    AdaptiveDepthResNet,
    AdaptiveDepthSwin,
    AdaptiveDepthViT,
    ShallowResNet,
    compile_stages,
    extract_feats,
    set_skip,
)
from .checkpoints import load_for_testing, load_norms, recalibrate  # noqa: E402
from .detections import to_supervision  # noqa: E402
from .distillation import SkipAwareDistillationHook  # noqa: E402
from .errors import UserError  # noqa: E402
from .evaluation import ExactCocoMetric, SubNetTestLoop, SubNetValLoop  # noqa: E402
from .operating_point import OperatingPoint  # noqa: E402
from .parts import any_depth_detector  # noqa: E402
from .points import set_point, using_point  # noqa: E402
from .skip_config import SkipConfig  # noqa: E402
from .training import StuckNormsHook, train  # noqa: E402

__version__ = '0.1.0'
__all__ = [
    'AdaptiveDepthMobileNetV2',
    'AdaptiveDepthResNet',
    'AdaptiveDepthSwin',
    'AdaptiveDepthViT',
    'ExactCocoMetric',
    'OperatingPoint',
    'ShallowResNet',
    'SkipAwareDistillationHook',
    'SkipConfig',
    'StuckNormsHook',
    'SubNetTestLoop',
    'SubNetValLoop',
    'UserError',
    'any_depth_detector',
    'compile_stages',
    'extract_feats',
    'load_for_testing',
    'load_norms',
    'recalibrate',
    'set_point',
    'set_skip',
    'to_supervision',
    'train',
    'using_point',
]
