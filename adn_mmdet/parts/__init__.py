from .csp import SkippableCSP
from .detector import any_depth_detector, stock_model
from .layers import SkippableLayers
from .part import Part
from .stages import SkippableStages
from .towers import SkippableTower

__all__ = [
    'Part',
    'SkippableCSP',
    'SkippableLayers',
    'SkippableStages',
    'SkippableTower',
    'any_depth_detector',
    'stock_model',
]
