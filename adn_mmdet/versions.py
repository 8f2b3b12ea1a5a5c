"""The version gate: which versions of mmcv, mmengine and mmdet go together, and what to run when they don't."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

# The versions that were tested together, by the names of their distributions. The maintained fork installs the same
# import names (mmcv, mmengine, mmdet), and mmcv-lite those of mmcv: a mix of any two overwrites itself.
UPSTREAM = {'mmengine': '>=0.10.4,<0.11', 'mmcv-lite': '>=2.1,<2.2', 'mmdet': '>=3.3,<3.4'}
COMPILED = {'mmengine': '>=0.10.4,<0.11', 'mmcv': '>=2.1,<2.2', 'mmdet': '>=3.3,<3.4'}
ONEDL = {'onedl-mmengine': '>=0.10.12,<0.11', 'onedl-mmcv': '>=2.3.6,<2.4', 'onedl-mmdetection': '>=3.5.1,<3.6'}
STACKS = (UPSTREAM, COMPILED, ONEDL)
SET_UP = '`make setup` (upstream) or `make setup REQUIREMENTS=requirements/onedl.txt` (maintained fork)'


def installed_versions() -> dict[str, str]:
    """The installed distributions of all stacks, with their versions."""
    found = {}
    for name in sorted({name for stack in STACKS for name in stack}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def diagnose(found: dict[str, str]) -> str | None:
    """Say in one line what is wrong with a set of installed versions.

    Args:
        found: distribution names of any stack with their versions.

    Returns:
        What was found, what is needed and what to run; None where all is well.
    """
    listed = ', '.join(f'{name} {number}' for name, number in found.items()) or 'none of them'
    if not any(found.keys() <= stack.keys() for stack in STACKS):
        return f'these overwrite each other: {listed}; run `make clean`, then {SET_UP}'
    for stack in STACKS:
        if all(name in found and found[name] in SpecifierSet(spec) for name, spec in stack.items()):
            return None
    needed = next(stack for stack in STACKS if found.keys() <= stack.keys())
    wanted = ', '.join(f'{name} {spec}' for name, spec in needed.items())
    return f'adn_mmdet needs {wanted}; found {listed}: run {SET_UP}'


def require_stack() -> None:
    """Refuse to go on without a stack that works.

    Raises:
        ImportError: one line that says what is wrong and which command mends it.
    """
    problem = diagnose(installed_versions())
    if problem:
        raise ImportError(problem)
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        raise ImportError(
            f'OpenCV does not import ({error}): on a server without libGL run '
            '`pip uninstall -y opencv-python && pip install "opencv-python-headless<5"`'
        ) from error
    try:
        importlib.import_module('mmcv._ext')
    except ModuleNotFoundError as error:
        raise ImportError(f'mmcv has no operators ({error}): run `make setup`, which puts them there') from error
    except ImportError as error:
        raise ImportError(
            f"mmcv's compiled operators do not fit this torch ({error}): "
            "run `pip cache remove '*mmcv*'; make clean setup`, which needs none"
        ) from error


def prove() -> str:
    """Run one operator of mmcv and one of torchvision.

    Returns:
        The versions that work together, in one line.
    """
    import torch
    import torchvision
    from mmcv.ops import get_compiler_version, nms

    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [20.0, 20.0, 29.0, 29.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    kept = nms(boxes, scores, iou_threshold=0.5)[1].tolist()
    if kept != [0, 2] or torchvision.ops.nms(boxes, scores, 0.5).tolist() != kept:
        raise ImportError(f'mmcv.ops.nms keeps boxes {kept}, not [0, 2]: run `make clean setup`')
    listed = ', '.join(f'{name} {number}' for name, number in installed_versions().items())
    device = 'CUDA' if torch.cuda.is_available() else 'CPU'
    return f'torch {torch.__version__}, {listed}: operators work on {device}, compiler: {get_compiler_version()}'
