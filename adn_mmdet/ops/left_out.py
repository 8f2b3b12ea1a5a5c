"""What is said of the operators of mmcv that neither torch nor torchvision has."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

BUILD = 'MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation'


def left_out(operator: str) -> NotImplementedError:
    """The error of an operator that is called and not there: its name, and how to get it."""
    try:
        command = f'{BUILD} onedl-mmcv=={version("onedl-mmcv")}'
    except PackageNotFoundError:
        command = f'pip uninstall -y mmcv-lite; {BUILD} mmcv==2.1.0'
    return NotImplementedError(
        f'{operator} is not among the operators that need no compiler: build mmcv (20 minutes) by `{command}`'
    )
