from .loading import load_for_testing, read_weights
from .safe_loading import load_file

__all__ = ['load_file', 'load_for_testing', 'read_weights']
