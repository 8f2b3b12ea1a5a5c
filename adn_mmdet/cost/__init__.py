from .latency_file import benchmark_latency
from .macs import Cost, count_costs, default_input_size

__all__ = ['Cost', 'benchmark_latency', 'count_costs', 'default_input_size']
