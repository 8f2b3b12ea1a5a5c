"""What stands for ``mmcv._ext``, and how it gets there."""

import importlib.machinery
import subprocess
import sys

import pytest
import torch
from mmcv.ops import RoIAlign, get_compiler_version, get_compiling_cuda_version, nms_rotated
from tiny import ROOT

from adn_mmdet.ops import table
from adn_mmdet.ops.place import place

# What `place` writes stands before the environment's own file here, so that it is this checkout's.
STOCK = """
import sys, torch, mmcv
mmcv.__path__.insert(0, sys.argv[1])
from mmcv.ops import RoIAlign, nms
import mmcv._ext as ext
assert nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([.9, .8]), .5)[1].tolist() == [0]
assert RoIAlign(2)(torch.ones(1, 1, 4, 4), torch.tensor([[0., 0, 0, 3, 3]])).tolist() == [[[[1, 1], [1, 1]]]]
assert 'adn_mmdet' not in sys.modules
print(ext.__file__, ext.nms.__code__.co_filename)
"""
MISSING = """
import importlib.util, sys, mmcv
mmcv.__path__.insert(0, sys.argv[1])
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == 'adn_mmdet' else find(name)
import mmcv.ops
"""


def run(script, folder):
    return subprocess.run([sys.executable, '-c', script, str(folder)], capture_output=True, text=True, cwd=ROOT)


def test_stock_scripts_find_what_is_placed(tmp_path):
    file = place(tmp_path)
    assert file == tmp_path / '_ext.py'
    assert place(tmp_path) == file  # again, as each `make setup` does
    script = run(STOCK, tmp_path)
    assert script.returncode == 0, script.stderr
    assert script.stdout.split() == [str(file), str(ROOT / 'adn_mmdet' / 'ops' / 'suppression.py')]


@pytest.mark.parametrize(
    'call, operator',
    [
        (lambda: nms_rotated(torch.rand(3, 5), torch.rand(3), 0.5), 'nms_rotated'),
        (
            lambda: RoIAlign(7, pool_mode='max')(torch.rand(1, 1, 4, 4), torch.rand(1, 5)),
            "roi_align with pool_mode='max'",
        ),
    ],
    ids=['nms_rotated', 'maximum'],
)
def test_what_is_left_out_says_how_to_get_it(call, operator):
    with pytest.raises(NotImplementedError) as raised:
        call()
    message = str(raised.value)
    assert message.startswith(f'{operator} is not among the operators that need no compiler') and '\n' not in message
    assert 'build mmcv (20 minutes) by `' in message and 'MMCV_WITH_OPS=1 pip install --force-reinstall' in message


def test_every_name_is_callable_but_python_s_own():
    assert all(callable(getattr(table, name)) for name in (*table.__all__, 'any_operator_of_another_release'))
    with pytest.raises(AttributeError):
        _ = table.__wrapped__


def test_the_environment_is_described():
    assert get_compiler_version().startswith('none (operators of torchvision')
    assert get_compiling_cuda_version() == (torch.version.cuda or 'none')


def test_place_leaves_compiled_operators_alone(tmp_path):
    (tmp_path / f'_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}').touch()
    assert place(tmp_path) is None
    assert not (tmp_path / '_ext.py').exists()


def test_without_adn_mmdet_the_file_says_who_is_missing(tmp_path):
    place(tmp_path)
    script = run(MISSING, tmp_path)
    assert script.returncode == 1
    assert 'ModuleNotFoundError: adn_mmdet, which holds the operators that' in script.stderr.splitlines()[-1]
