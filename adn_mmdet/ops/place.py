"""Puts mmcv's operators where mmcv looks for them: ``python adn_mmdet/ops/place.py``, as ``make setup`` does."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

# Stock scripts import mmcv before they hear of adn_mmdet, so that this stands in mmcv's own folder. adn_mmdet is found,
# not imported: importing it imports mmdet, which imports this.
MMCV_EXT = '''"""mmcv's compiled operators, which adn_mmdet computes by torch and torchvision: see its folder `ops`."""

from importlib.util import find_spec
from pathlib import Path

_adn_mmdet = find_spec('adn_mmdet')
if _adn_mmdet is None:
    raise ModuleNotFoundError(f'adn_mmdet, which holds the operators that {__file__} is for, is not installed')
__path__ = [str(Path(_adn_mmdet.origin).with_name('ops'))]

from mmcv._ext.table import *
from mmcv._ext.table import __getattr__
'''


def place(mmcv: Path) -> Path | None:
    """Write ``_ext.py`` into mmcv's folder.

    Returns:
        The file; None where mmcv has its compiled operators, which are used.
    """
    if any((mmcv / f'_ext{suffix}').exists() for suffix in EXTENSION_SUFFIXES):
        return None
    file = mmcv / '_ext.py'
    file.write_text(MMCV_EXT, encoding='utf-8')
    return file


if __name__ == '__main__':
    found = find_spec('mmcv')
    if found is None or found.origin is None:
        raise SystemExit('mmcv is not installed: run `make setup`')
    place(Path(found.origin).parent)
