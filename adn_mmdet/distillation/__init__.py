from .hook import SkipAwareDistillationHook
from .losses import FEATURE_KLS, gap_channel_kl, spatial_kl
from .self_distillation import SelfDistillation

__all__ = ['FEATURE_KLS', 'SelfDistillation', 'SkipAwareDistillationHook', 'gap_channel_kl', 'spatial_kl']
