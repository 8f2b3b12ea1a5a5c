from .loading import load_for_testing, read_weights
from .safe_loading import load_from_local

__all__ = ['load_from_local', 'load_for_testing', 'read_weights']
