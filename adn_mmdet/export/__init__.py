from .sub_net import export_sub_net

__all__ = ['export_sub_net']
