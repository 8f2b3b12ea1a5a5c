import sys

import pytest

from adn_mmdet.ops import table


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """mmcv.ops calls the operators of this checkout, also where mmcv was compiled."""
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', table)
