from .coco_metric import ExactCocoMetric
from .loops import SubNetTestLoop, SubNetValLoop
from .run import evaluate_sub_nets
from .shared_calls import sharing

__all__ = ['ExactCocoMetric', 'SubNetTestLoop', 'SubNetValLoop', 'evaluate_sub_nets', 'sharing']
