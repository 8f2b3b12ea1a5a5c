from .hook import SkipAwareDistillationHook
from .losses import FEATURE_LOSSES
from .self_distillation import SelfDistillation

__all__ = ['FEATURE_LOSSES', 'SelfDistillation', 'SkipAwareDistillationHook']
