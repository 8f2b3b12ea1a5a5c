"""What the README shows is what works."""

import argparse
import re
import shlex

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny import ROOT, load_tool

README = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```(\w*)\n(.*?)```', README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines() if line.startswith('python ')]
CONFIGS = [block for kind, block in BLOCKS if kind == 'python' and 'model = dict(' in block]


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_name_scripts_configs_and_flags_that_exist(command):
    _, script, *arguments = shlex.split(command)
    args = load_tool(script.removeprefix('tools/').removesuffix('.py')).parse_args(arguments)
    assert isinstance(args, argparse.Namespace)
    if getattr(args, 'config', None):
        assert (ROOT / args.config).is_file()


def test_targets_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'(?:`|^)make (\w+)', README, re.MULTILINE):
        assert f'\n{target}:' in makefile, target


def test_own_data_is_a_config_of_a_few_lines(tmp_path):
    init_default_scope('mmdet')
    one_class, own_detector = CONFIGS
    path = tmp_path / 'raccoons.py'
    path.write_text(one_class.replace("'./", f"'{ROOT}/configs/"))
    cfg = Config.fromfile(path)
    assert MODELS.build(cfg.model).roi_head.bbox_head.num_classes == 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == ('raccoon',) and loader.dataset.data_root == 'data/raccoons/'
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'data/raccoons/val.json'
    path.write_text(f"_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n{own_detector}")
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    assert type(MODELS.build(cfg.model).backbone).__name__ == 'AdaptiveDepthResNet'
    assert cfg.custom_hooks[0].type == 'SkipAwareDistillationHook'


def test_every_config_of_the_table_exists():
    names = re.findall(r'`(\w+_coco\.py)`', README)
    assert len(names) == 9 and all((ROOT / 'configs' / name).is_file() for name in names)


def test_links_exist():
    for target in re.findall(r'\]\((?!http)([^)]+)\)', README):
        assert (ROOT / target).is_file(), target
