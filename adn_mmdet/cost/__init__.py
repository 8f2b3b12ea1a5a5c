from ..input_size import default_input_size
from .macs import Cost, CostByPart, count_costs, count_costs_of_points

__all__ = ['Cost', 'CostByPart', 'count_costs', 'count_costs_of_points', 'default_input_size']
