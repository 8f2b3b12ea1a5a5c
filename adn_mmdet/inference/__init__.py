from .any_depth import AnyDepthInferencer
from .inputs import list_inputs

__all__ = ['AnyDepthInferencer', 'list_inputs']
