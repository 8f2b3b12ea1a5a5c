"""Configs: how they are read, what they ask for, and what is checked before a run, so that nothing is lost."""

from __future__ import annotations

import ast
import difflib
import fnmatch
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.fileio import YamlHandler, register_handler
from mmengine.runner import Runner

from .errors import UserError
from .explain import explain_reading
from .files import name_problem
from .keys import nearest, parameters, parts, require_known
from .skip_config import SkipConfig

# Weights that configs/ start from but that no URL scheme fetches: how to get them, and what needs none.
WEIGHTS_HELP = {
    'resnet50_adn_imagenet.pth': (
        'get the ADN ResNet-50 of the authors (github.com/wchkang/depth) by `python tools/get_weights.py resnet50`,\n'
        'or start from weights that download themselves: configs/*_r50vd_adn_1x_coco.py or, of torchvision, '
        'configs/*_adn_tv_1x_coco.py'
    ),
    'resnet50_base_imagenet.pth': (
        'train ShallowResNet(50, stage_blocks=(2, 2, 3, 2)) on ImageNet, as with mmpretrain, and save it there,\n'
        "or start from the same blocks of torchvision's ResNet-50: "
        '--cfg-options model.backbone.init_cfg.checkpoint=torchvision://resnet50'
    ),
}
COCO_HELP = 'put COCO there (annotations/, train2017/, val2017/), or try `make demo`, which needs no data'


# The least value of numbers that mmengine takes without a look; whole numbers but for the learning rate.
LEAST = {
    '*_dataloader.batch_size': 1,
    '*_dataloader.num_workers': 0,
    'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'optim_wrapper.optimizer.lr': 0.0,
}
TYPO = 0.9  # how alike a name is to that of a section, so that it must be meant


SAFE_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)  # a stock config's package is read through at each load


@register_handler(['yaml', 'yml'])
class _SafeYaml(YamlHandler):
    """Let mmengine read YAML without tags that run code."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        return yaml.load(file, Loader=SAFE_LOADER)


def load_config(path: str, cfg_options: Mapping[str, Any] | None = None, work_dir: str | None = None) -> Config:
    """Read a config as mmdet's scripts do.

    Args:
        path: the config file.
        cfg_options: overrides by dotted name.
        work_dir: where the run writes; None takes the config's, else ``work_dirs/<config name>``.

    Raises:
        UserError: there is no such file, it cannot be read, has no model, an override names what nothing has, or a
            number is out of its range; says the nearest names.
    """
    if not os.path.isfile(path):
        folder = Path(path).parent if Path(path).parent.is_dir() else Path('configs')
        near = difflib.get_close_matches(Path(path).name, [file.name for file in folder.glob('*.py')], cutoff=0.4)
        hint = f'did you mean {" or ".join(str(folder / name) for name in near)}?' if near else 'check the path'
        raise UserError(
            f'{path} is a folder, no config: {hint}' if os.path.isdir(path) else f'there is no config {path}: {hint}'
        )
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code: whatever it raises
        raise UserError(explain_reading(error, path)) from error
    override(cfg, cfg_options or {})
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(path).stem)
    return cfg


def override(cfg: Config, options: Mapping[str, Any]) -> None:
    """Change a config in place by dotted names, and check what it then holds.

    Raises:
        UserError: as :func:`load_config`.
    """
    require_known(cfg._cfg_dict, options)
    cfg.merge_from_dict(dict(options))
    _require_names(cfg)
    require_sections(cfg, 'model')
    _require_numbers(cfg)


def literal(node: ast.expr) -> Any:
    """The value of an expression that is data, as ``Config.pretty_text`` writes it: literals and ``dict(key=value)``.

    Raises:
        UserError: it is anything else. Nothing in it runs.
    """
    if isinstance(node, ast.Call):
        is_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args
        if is_dict and all(keyword.arg is not None for keyword in node.keywords):
            return {keyword.arg: literal(keyword.value) for keyword in node.keywords}
    elif isinstance(node, (ast.List, ast.Tuple)):
        values = [literal(item) for item in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    elif isinstance(node, ast.Dict) and None not in node.keys:
        return {literal(key): literal(item) for key, item in zip(node.keys, node.values) if key is not None}
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = node.operand.value
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number
    elif isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (bool, int, float, str)):
        return node.value
    raise UserError(f'holds {shown(node)}, which is no data')


def shown(node: ast.AST) -> str:
    """Code in a message."""
    text = ast.unparse(node)
    return f'{type(node).__name__} {text[:40]!r}' + ('…' if len(text) > 40 else '')


def require_sections(cfg: Config, *names: str) -> None:
    """Make sure that a config has the sections that a run needs.

    Raises:
        UserError: one is missing, None or no dict (of evaluators, a list).
    """
    for name in names:
        section = cfg.get(name)
        if not isinstance(section, (dict, list) if name.endswith('evaluator') else dict):
            given = f'is {section!r:.60} in' if name in cfg else 'is missing in'
            raise UserError(f'{name} {given} {cfg.filename}{nearest(name, cfg)}')


def _require_names(cfg: Config) -> None:
    """Refuse a section whose name is all but that of one that mmengine reads: it would be passed over."""
    sections = parameters(Runner) or set()
    for name, value in cfg.items():
        near = difflib.get_close_matches(name, sections, n=1, cutoff=TYPO)
        if near and name not in sections and isinstance(value, dict):
            raise UserError(f'nothing reads {name} of {cfg.filename}{nearest(name, near)}')


def _require_numbers(cfg: Config) -> None:
    for path, value in parts(cfg._cfg_dict):
        if isinstance(value, float) and (math.isnan(value) or math.isinf(value) and not path.startswith('model.')):
            raise UserError(f'{path} is {value} in {cfg.filename}: give a finite number')
        for pattern, least in LEAST.items():
            kinds = int if isinstance(least, int) else (int, float)
            if fnmatch.fnmatch(path, pattern) and value is not None:
                if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
                    raise UserError(
                        f'{path} is {value!r:.60}: give a {"whole " * (kinds is int)}number of at least {least:g}'
                    )


def choose_codes(cfg: Config, skip: str | None) -> list[SkipConfig] | None:
    """The codes that ``skip`` asks for; where it is None, those of the config.

    Returns:
        None for a detector that has no depth to choose.

    Raises:
        UserError: a code that is not valid, or a skip for such a detector.
    """
    backbone = cfg.model.get('backbone') or {}
    kind = backbone.get('type')  # mmengine allows a name, of any scope, or a class
    backbone_class = MODELS.get(kind) if isinstance(kind, str) else kind
    if not hasattr(backbone_class, 'using_skip'):  # every AdaptiveDepthBackbone has it
        if skip:
            raise UserError(f'--skip {skip}: {backbone.get("type")} has no depth to choose, leave --skip out')
        return None
    num_stages: int = backbone.get('num_stages', getattr(backbone_class, 'num_stages', 4))
    groups = num_stages, *(1 for _ in cfg.model.get('parts', ()))
    own = backbone.get('skip') or SkipConfig.super_net(groups)
    return [SkipConfig.parse(own, groups)] if skip is None else SkipConfig.parse_list(skip, groups)


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder, and make sure that files can be written to it.

    Raises:
        UserError: they cannot.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk takes empty files
            file.flush()
    except OSError as error:
        raise UserError(f'cannot write to {folder} ({error.strerror}): give another folder') from error


def require_output(path: str | os.PathLike[str]) -> None:
    """Make sure that a file can be written to a path; its folder is made, what is there is left as it is.

    Raises:
        UserError: it cannot.
    """
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder: give the name of a file')
    require_writable(Path(path).parent)
    if problem := name_problem(path):
        raise UserError(f'cannot write {path} ({problem}): give another name')


def require_weights(cfg: Config) -> None:
    """Make sure that the local files of weights that a config starts from exist.

    Raises:
        UserError: one does not; says how to get it, and which config needs no such file.
    """
    for path in [cfg.get('load_from'), *_pretrained_files(cfg.model)]:
        if path and '://' not in path and not os.path.isfile(os.path.expanduser(path)):
            raise UserError(
                f'there are no weights {path}: {WEIGHTS_HELP.get(os.path.basename(path), "check the path")}'
            )


def _pretrained_files(config: Any) -> Iterator[str]:
    """The ``checkpoint`` of every ``init_cfg`` in a model's config."""
    if isinstance(config, Mapping):
        if config.get('type') == 'Pretrained':
            yield config['checkpoint']
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _pretrained_files(part)


def coco_dataset(dataloader: ConfigDict) -> ConfigDict:
    """The data set's own config inside wrappers such as RepeatDataset."""
    dataset = dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def annotation_file(dataloader: ConfigDict) -> Path | None:
    """The local annotation file of a data loader's data set; None where it names none."""
    return local_file(coco_dataset(dataloader))


def local_file(config: ConfigDict) -> Path | None:
    """The local annotation file that the config of a data set or of a metric names, if any."""
    root, name = config.get('data_root') or '', config.get('ann_file')
    if not isinstance(name, str) or not name or '://' in root + name or config.get('backend_args'):
        return None
    return Path(root) / name


def image_folder(dataset: ConfigDict) -> Path:
    """Where a data set's images are."""
    prefix = dataset.get('data_prefix') or {}
    prefix = prefix if isinstance(prefix, str) else prefix.get('img', '')  # mmpretrain's is a text
    return Path(dataset.get('data_root') or '') / prefix


def require_data(dataloader: ConfigDict) -> None:
    """Make sure that a data loader's annotations and image folder are there.

    What is in them, :func:`~adn_mmdet.datasets.preparation.prepare_data` looks at.

    Raises:
        UserError: they are not; says which path.
    """
    dataset = coco_dataset(dataloader)
    path = local_file(dataset)
    if path is None:
        return
    help_text = COCO_HELP if 'coco' in str(path).lower() else 'check data_root and ann_file in the config'
    if not path.is_file():
        raise UserError(f'there is no annotation file {path}: {help_text}')
    if not image_folder(dataset).is_dir():
        raise UserError(f'there is no image folder {image_folder(dataset)}: {help_text}')
