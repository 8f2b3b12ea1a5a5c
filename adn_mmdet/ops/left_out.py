"""What is said of the operators of mmcv that neither torch nor torchvision has."""

from __future__ import annotations

BUILD = 'pip uninstall -y mmcv-lite && MMCV_WITH_OPS=1 pip install --no-binary mmcv --no-build-isolation mmcv==2.1.0'


def left_out(operator: str) -> NotImplementedError:
    """The error of an operator that is called and not there: its name, and how to get it."""
    return NotImplementedError(f'mmcv-lite has no {operator}: build mmcv, which takes a compiler, by `{BUILD}`')
