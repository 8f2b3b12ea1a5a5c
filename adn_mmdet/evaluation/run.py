"""One test run: a config and a checkpoint at one or more depths, to rows in ``WORK_DIR/sub_nets.json``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..backbones.features import unwrap
from ..checkpoints import load_for_testing
from ..checkpoints.norms import load_norms
from ..config import annotation_file, choose_codes, coco_dataset, require_data
from ..cost.macs import count_costs, default_input_size
from ..datasets.images import name_unreadable
from ..datasets.preparation import prepare_data
from ..errors import UserError
from ..files import file_sha256
from ..ops.precision import keep_boxes_exact
from ..results.rows import FILE_NAME, Row, held_rows
from ..results.tables import print_table
from ..skip_config import SkipConfig
from .coco_metric import use_exact_metrics
from .run_hooks import ProgressHook, RowsHook
from .sub_nets import outputs_asked


def evaluate_sub_nets(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    skip: str | None = None,
    tta: bool = False,
    dump: str | None = None,
    allow_untrained: bool = False,
    allow_mismatch: bool = False,
    norms: str | os.PathLike[str] | None = None,
    amp: bool = False,
) -> list[Row]:
    """Test sub-networks, write a row each to ``cfg.work_dir/sub_nets.json`` as soon as it is known, print the table.

    Args:
        cfg: a config; it is changed to that of the run.
        checkpoint: local weights.
        skip: a code, a comma list of codes, or ``all``; None takes the config's.
        tta: test-time augmentation (boxes only).
        dump: a .pkl file for the predictions; of several codes each gets its own, named after it.
        allow_untrained: test skipped sub-networks of weights without skip-aware norms.
        allow_mismatch: go on although weights are missing or left over.
        norms: a file of :func:`~adn_mmdet.checkpoints.recalibrate`, of this checkpoint and the one code tested.
        amp: mixed precision, float16 on a GPU and bfloat16 on the CPU.

    Returns:
        All rows of this run, those of earlier calls with the same weights and data included; empty on other ranks.

    Raises:
        UserError: for whatever a user can get wrong.
    """
    require_data(cfg.test_dataloader)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    codes = choose_codes(cfg, skip)
    if codes and len(codes) == 1:  # so that a dump of the config reloads at that depth
        cfg.model.backbone.skip = str(codes[0])
    input_size = default_input_size(cfg)
    if tta:
        _use_tta(cfg)
    if amp:
        cfg.test_cfg.fp16 = True
    settings = _settings_sha256(cfg)
    annotations = annotation_file(cfg.test_dataloader)
    prepare_data(cfg, 'test')  # may point to a copy of them
    cfg.load_from = None  # loaded below, strictly
    if codes:
        cfg.test_cfg.update(type='SubNetTestLoop', skips=[str(code) for code in codes])
    else:
        use_exact_metrics(cfg.test_evaluator)
    runner = Runner.from_cfg(cfg)
    if amp:
        keep_boxes_exact(unwrap(runner.model), torch.device(get_device()))
    load_for_testing(runner.model, checkpoint, codes or (), allow_untrained, allow_mismatch)
    run = _describe_run(cfg, checkpoint, annotations, name_unreadable(runner.test_dataloader).dataset)
    run |= {'input_size': list(input_size), 'settings_sha256': settings}
    if norms:
        load_norms(runner.model, norms, run['checkpoint_sha256'], codes or ())
        run['norms_sha256'] = file_sha256(norms)
    if dump:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=dump))
    _test(runner, cfg.work_dir, run, codes, input_size)
    rows = held_rows(cfg.work_dir, run) if runner.rank == 0 else []
    if rows:
        height, width = input_size
        print_table(rows, f'{run["name"]}, {run["num_images"]} images, costs at {height}×{width}')
    return rows


def _test(
    runner: Runner,
    work_dir: str,
    run: dict[str, Any],
    codes: list[SkipConfig] | None,
    input_size: tuple[int, int],
) -> None:
    """Test what has no row yet; all that is asked for where more than rows is to be written or shown."""
    names: dict[Any, str | None] = {code: str(code) for code in codes} if codes else {None: None}
    extra = any(outputs_asked(runner, runner.test_evaluator)) or any(getattr(hook, 'show', 0) for hook in runner.hooks)
    held = set() if extra else {row['skip'] for row in held_rows(work_dir, run)}
    todo = [code for code, name in names.items() if name not in held]
    broadcast_object_list(shared := [todo])  # other machines may not see that file
    todo = shared[0]
    if runner.rank == 0 and len(todo) < len(names):
        done = ', '.join(name or run['name'] for code, name in names.items() if code not in todo)
        print(f'{done}: in {Path(work_dir) / FILE_NAME} already, from the same weights, data and settings')
    if not todo:
        return
    costs = count_costs(runner.model, todo if codes else None, input_size)
    runner.register_hook(RowsHook(work_dir, run, dict(zip(todo, costs))), priority='LOWEST')
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=runner.rank != 0) as progress:
        runner.register_hook(ProgressHook(progress, len(runner.test_dataloader), len(todo)), priority='LOWEST')
        if codes:
            runner.test_loop.codes = todo
        metrics = runner.test()
        if not codes:
            runner.call_hook('after_sub_net', code=None, metrics=metrics)


def _describe_run(
    cfg: Config, checkpoint: str | os.PathLike[str], annotations: Path | None, dataset: BaseDataset
) -> dict[str, Any]:
    """What the numbers of a run depend on."""
    return {
        'name': Path(cfg.filename).stem,
        'config': cfg.filename,
        'checkpoint_sha256': file_sha256(checkpoint),
        'annotations_sha256': file_sha256(annotations) if annotations else None,
        'classes': list(dataset.metainfo['classes']),
        'num_images': len(dataset),
    }


def _settings_sha256(cfg: Config) -> str:
    """A hash of what else the numbers depend on: model, pipeline, evaluator and loop, without what changes nothing."""
    leave_out = {'skip', 'init_cfg', 'train_cfg', 'num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory'}

    def relevant(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: relevant(entry) for name, entry in value.items() if name not in leave_out}
        return [relevant(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    parts = [relevant(cfg.get(name)) for name in ('model', 'test_dataloader', 'test_evaluator', 'test_cfg')]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _use_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation, with mmdet's default (a horizontal flip) where the config has none."""
    if cfg.model.get('roi_head', {}).get('mask_head') or cfg.model.get('mask_head'):
        raise UserError('--tta: mmdet has no test-time augmentation for masks, leave --tta out')
    if 'tta_model' not in cfg:
        nms = dict(type='nms', iou_threshold=0.5)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
    dataset = coco_dataset(cfg.test_dataloader)
    if 'tta_pipeline' not in cfg:
        pack = dict(dataset.pipeline[-1])
        pack['meta_keys'] = (*pack.get('meta_keys', ()), 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*dataset.pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
