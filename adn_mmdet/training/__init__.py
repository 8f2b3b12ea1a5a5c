from .checkpoint_hook import AtomicCheckpointHook
from .exact_resume import ExactResumeHook
from .finite_loss import FiniteLossHook, LossScaleHook
from .preemption import PREEMPTED, PreemptionHook
from .run import train
from .stuck_norms import StuckNormsHook

__all__ = [
    'PREEMPTED',
    'AtomicCheckpointHook',
    'ExactResumeHook',
    'FiniteLossHook',
    'LossScaleHook',
    'PreemptionHook',
    'StuckNormsHook',
    'train',
]
