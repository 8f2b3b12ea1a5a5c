from .hook import SkipAwareDistillationHook
from .losses import FEATURE_LOSSES
from .self_distillation import SelfDistillation
from .settings import DistillationSettings

__all__ = ['FEATURE_LOSSES', 'DistillationSettings', 'SelfDistillation', 'SkipAwareDistillationHook']
