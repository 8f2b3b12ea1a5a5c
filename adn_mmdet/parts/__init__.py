from .detector import any_depth_detector, stock_model
from .part import Part
from .towers import SkippableTower

__all__ = ['Part', 'SkippableTower', 'any_depth_detector', 'stock_model']
