import gc
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

GPU_TESTS = os.environ.get('ADN_GPU_TESTS')  # set by `make gpu-check`
if not GPU_TESTS:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''  # a machine with GPUs tests what one without does; before torch looks

import mmengine.config.config
import mmengine.config.utils
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer
from tiny import ROOT, load_tool

from adn_mmdet.datasets import make_shapes

# Layers this narrow run no faster on two threads, and much slower where another process wants the core.
torch.set_num_threads(1)
os.environ['OMP_NUM_THREADS'] = '1'  # for the scripts that tests start

# Half of a short run in mmengine is the layout of config texts, and the search of mmdet's index for a base config.
mmengine.config.config.FormatCode = lambda text, **_: (text, True)
mmengine.config.utils.load = cache(mmengine.config.utils.load)

DEMO_CONFIG = str(ROOT / 'configs' / 'mask_rcnn_r50_adn_shapes.py')


def pytest_collection_finish() -> None:
    """What is imported stays: every data set that mmengine loads looks through all objects for garbage."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run by `make gpu-check` alone."""
    if GPU_TESTS != 'cpu' and not (GPU_TESTS and torch.cuda.is_available()):
        reason = 'torch sees no GPU' if GPU_TESTS else 'needs a GPU: make gpu-check'
        for item in items:
            if item.get_closest_marker('gpu'):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def own_visualizer_and_logger() -> None:
    """mmengine paints and logs with what was named last in a process: not with that of an earlier test, long closed."""
    Visualizer._instance_dict.clear()
    MMLogger._instance_dict.clear()


@pytest.fixture(scope='session')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 16 + 6 images of 64×64."""
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=16, num_val=6, image_size=64)


@pytest.fixture(scope='session')
def tiny_options(shapes: Path) -> list[str]:
    """What makes the demo a matter of seconds, as ``--cfg-options`` of the scripts."""
    options = {
        'model.backbone.base_channels': 8,
        'model.neck.in_channels': '[32,64,128,256]',
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 4,
        'train_cfg.val_interval': 4,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
        **{f'{split}_dataloader.dataset.data_root': f'{shapes}/' for split in ('train', 'val', 'test')},
        **{f'{split}_evaluator.ann_file': f'{shapes}/annotations/instances_val.json' for split in ('val', 'test')},
    }
    return ['--cfg-options', *(f'{name}={value}' for name, value in options.items())]


@pytest.fixture(scope='session')
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_options: list[str]) -> Path:
    """The work folder of four iterations of the demo, with its checkpoints ``iter_2.pth`` and ``iter_4.pth``."""
    work_dir = tmp_path_factory.mktemp('trained')
    options = [*tiny_options, 'default_hooks.checkpoint.max_keep_ckpts=-1']
    assert load_tool('train').main([DEMO_CONFIG, '--work-dir', str(work_dir), *options]) == 0
    return work_dir


@pytest.fixture
def elsewhere(tmp_path: Path):
    """Another working directory."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each annotation file that is parsed."""
    found: list[int] = []
    decode = json.JSONDecoder.decode

    def counted(self: json.JSONDecoder, text: str, *args: Any) -> Any:
        content = decode(self, text, *args)
        if isinstance(content, dict) and 'annotations' in content:
            found.append(len(content['images']))
        return content

    monkeypatch.setattr(json.JSONDecoder, 'decode', counted)
    return found
