import shutil
from pathlib import Path

import pytest


@pytest.fixture
def saved(tiny, tmp_path):
    """The bare weights of a test file's tiny detector, and its config, as files."""
    return Path(shutil.copytree(tiny, tmp_path, dirs_exist_ok=True))
