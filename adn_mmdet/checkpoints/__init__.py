from .architectures import KNOWN, RESNETS
from .convert import Conversion, convert_checkpoint, convert_weights
from .download import get_weights
from .loading import load_for_testing, read_weights, require_fit
from .norms import estimate_statistics, load_norms, recalibrate
from .safe_loading import load_from_local, require_sound

__all__ = [
    'KNOWN',
    'RESNETS',
    'Conversion',
    'convert_checkpoint',
    'convert_weights',
    'estimate_statistics',
    'get_weights',
    'load_for_testing',
    'load_from_local',
    'load_norms',
    'read_weights',
    'recalibrate',
    'require_fit',
    'require_sound',
]
