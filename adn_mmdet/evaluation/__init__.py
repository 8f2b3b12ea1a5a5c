from .coco_metric import ExactCocoMetric
from .complexity import Cost, count_costs, default_input_size
from .run import evaluate_sub_nets
from .sub_nets import iterate_sub_nets

__all__ = ['Cost', 'ExactCocoMetric', 'count_costs', 'default_input_size', 'iterate_sub_nets', 'evaluate_sub_nets']
