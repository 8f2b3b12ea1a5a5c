from ..backbones.sharing import sharing
from .coco_metric import ExactCocoMetric
from .loops import SubNetTestLoop, SubNetValLoop
from .run import evaluate_sub_nets

__all__ = ['ExactCocoMetric', 'SubNetTestLoop', 'SubNetValLoop', 'evaluate_sub_nets', 'sharing']
