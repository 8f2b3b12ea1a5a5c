from .coco_metric import ExactCocoMetric
from .complexity import Cost, count_costs, default_input_size
from .loops import SubNetTestLoop, SubNetValLoop
from .recalibration import estimate_statistics, load_norms, recalibrate
from .run import evaluate_sub_nets
from .shared_calls import sharing
from .stuck_norms import StuckNormsHook

__all__ = [
    'Cost',
    'ExactCocoMetric',
    'StuckNormsHook',
    'SubNetTestLoop',
    'SubNetValLoop',
    'count_costs',
    'default_input_size',
    'estimate_statistics',
    'evaluate_sub_nets',
    'load_norms',
    'recalibrate',
    'sharing',
]
