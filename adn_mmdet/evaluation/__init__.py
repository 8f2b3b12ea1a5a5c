from .coco_metric import ExactCocoMetric
from .complexity import Cost, count_costs, default_input_size
from .recalibration import estimate_statistics, load_norms, recalibrate
from .run import evaluate_sub_nets
from .stuck_norms import StuckNormsHook
from .sub_nets import iterate_sub_nets
from .val_loop import SubNetValLoop

__all__ = [
    'Cost',
    'ExactCocoMetric',
    'StuckNormsHook',
    'SubNetValLoop',
    'count_costs',
    'default_input_size',
    'estimate_statistics',
    'evaluate_sub_nets',
    'iterate_sub_nets',
    'load_norms',
    'recalibrate',
]
