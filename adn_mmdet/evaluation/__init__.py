from ..backbones.sharing import sharing
from .coco_metric import ExactCocoMetric
from .evaluate import evaluate_sub_nets
from .loops import SubNetTestLoop, SubNetValLoop

__all__ = ['ExactCocoMetric', 'SubNetTestLoop', 'SubNetValLoop', 'evaluate_sub_nets', 'sharing']
