"""The README's lines in an environment of its own with onnxruntime, numpy and pillow, and nothing else."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from parity import make_lively
from tiny import ROOT, build, small_images, tiny_config

from adn_mmdet.export.any_depth import export_any_depth
from adn_mmdet.export.any_depth_runtime import AnyDepthRuntime

MOST_MB = 200


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """The interpreter of a fresh environment."""
    folder = tmp_path_factory.mktemp('fresh') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    python = next(folder.glob('*/python'))
    install = ['install', '--quiet', '--disable-pip-version-check', '--prefer-binary', 'onnxruntime', 'numpy', 'pillow']
    done = subprocess.run([sys.executable, '-m', 'pip', '--python', python, *install], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'pip cannot install onnxruntime, numpy and pillow here: {done.stderr.strip()[-200:]}')
    return python


def test_the_readmes_lines_run_without_torch(python, shapes, tmp_path):
    cfg = small_images(tiny_config('mask_rcnn'))
    cfg.dump(tmp_path / 'tiny.py')
    torch.save(make_lively(build(cfg)).state_dict(), tmp_path / 'tiny.pth')
    deploy = tmp_path / 'deploy'
    export_any_depth(Config.fromfile(tmp_path / 'tiny.py'), tmp_path / 'tiny.pth', deploy / 'detector.onnx')
    shutil.copy(shapes / 'val/000001.png', deploy / 'street.jpg')  # both readers go by the content
    assert sorted(path.name for path in deploy.iterdir()) == ['any_depth_runtime.py', 'detector.onnx', 'street.jpg']

    size = sum(path.stat().st_size for path in python.parents[1].rglob('*') if path.is_file() and not path.is_symlink())
    assert size < MOST_MB * 1e6
    missing = (
        'import importlib.util as util; print([name for name in ("torch", "mmdet", "cv2") if util.find_spec(name)])'
    )
    assert run(python, missing, deploy) == '[]'

    (code,) = (block for block in re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text('utf-8'), re.DOTALL)
               if 'any_depth_runtime' in block)  # fmt: skip
    assert re.match(r"\['\w+'.*, 64, 64\)$", run(python, code, deploy), re.DOTALL)
    each = (
        'from any_depth_runtime import AnyDepthRuntime\n'
        'detect = AnyDepthRuntime("detector.onnx")\n'
        'for code in detect.codes:\n'
        '    found = detect("street.jpg", skip=code)\n'
        '    print(code, len(found.names), found.masks.sum(), *found.scores.round(4))'
    )
    detect = AnyDepthRuntime(deploy / 'detector.onnx')
    expected = [(code, detect(deploy / 'street.jpg', skip=code)) for code in detect.codes]
    lines = run(python, each, deploy).splitlines()
    assert len(lines) == 16 and len(set(lines)) == 16
    for line, (code, found) in zip(lines, expected):
        assert line == ' '.join(map(str, (code, len(found.names), found.masks.sum(), *found.scores.round(4))))


def run(python, code, folder):
    done = subprocess.run([python, '-I', '-c', f'import sys; sys.path.insert(0, "")\n{code}'], cwd=folder,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
