from .convert import ARCHITECTURES, Conversion, convert_checkpoint, convert_weights
from .download import get_weights
from .loading import load_for_testing, read_weights
from .safe_loading import load_from_local

__all__ = [
    'ARCHITECTURES',
    'Conversion',
    'convert_checkpoint',
    'convert_weights',
    'get_weights',
    'load_for_testing',
    'load_from_local',
    'read_weights',
]
