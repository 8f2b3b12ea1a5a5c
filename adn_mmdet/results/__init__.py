from .rows import read_latency, read_sub_nets

__all__ = ['read_latency', 'read_sub_nets']
