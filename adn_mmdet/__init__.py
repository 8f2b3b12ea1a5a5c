"""Detectors whose depth is a run-time setting. Importing the package registers everything it has."""
from .stack import require_stack

require_stack()
