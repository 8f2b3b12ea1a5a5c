from .macs import Cost, count_costs, default_input_size

__all__ = ['Cost', 'count_costs', 'default_input_size']
