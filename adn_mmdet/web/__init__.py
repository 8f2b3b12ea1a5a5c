from .playground import Look, Playground
from .uploads import Uploads

__all__ = ['Look', 'Playground', 'Uploads']
