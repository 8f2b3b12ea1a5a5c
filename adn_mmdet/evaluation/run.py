"""One test run: a config and a checkpoint at one or more depths, to rows in ``WORK_DIR/sub_nets.json``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmdet.evaluation import DumpDetResults
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ..backbones.adaptive_depth import AdaptiveDepthBackbone
from ..checkpoints import load_for_testing
from ..errors import UserError
from ..files import file_sha256
from ..preflight import annotation_file, coco_dataset, require_data
from ..skip_config import SkipConfig
from .complexity import default_input_size
from .recalibration import load_norms
from .report import add_row, print_table
from .sub_nets import Row, iterate_sub_nets


def evaluate_sub_nets(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    skip: str | None = None,
    tta: bool = False,
    dump: str | None = None,
    allow_untrained: bool = False,
    allow_mismatch: bool = False,
    norms: str | os.PathLike[str] | None = None,
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
        norms: a file of :func:`~adn_mmdet.evaluation.recalibrate`, of this checkpoint and the one code tested.

    Returns:
        All rows of this run, those of earlier calls with the same weights and data included; empty on other ranks.

    Raises:
        UserError: for whatever a user can get wrong.
    """
    require_data(cfg.test_dataloader)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    codes = choose_codes(cfg, skip)
    input_size = default_input_size(cfg)
    use_exact_metrics(cfg.test_evaluator)
    if tta:
        _use_tta(cfg)
    cfg.load_from = None  # loaded below, strictly
    runner = Runner.from_cfg(cfg)
    load_for_testing(runner.model, checkpoint, codes or (), allow_untrained, allow_mismatch)
    run = _describe_run(cfg, checkpoint, runner.test_dataloader.dataset) | {'input_size': list(input_size)}
    if norms:
        load_norms(runner.model, norms, run['checkpoint_sha256'], codes or ())
        run['norms_sha256'] = file_sha256(norms)
    if dump:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=dump))
    rows: list[Row] = []
    for row in iterate_sub_nets(runner, codes, input_size):
        if runner.rank == 0:
            rows = add_row(cfg.work_dir, run, row)
    if rows:
        height, width = input_size
        print_table(rows, f'{run["name"]}, {run["num_images"]} images, costs at {height}×{width}')
    return rows


def _describe_run(cfg: Config, checkpoint: str | os.PathLike[str], dataset: BaseDataset) -> dict[str, Any]:
    """What the numbers of a run depend on."""
    annotations = annotation_file(cfg.test_dataloader)
    return {
        'name': Path(cfg.filename).stem,
        'config': cfg.filename,
        'checkpoint_sha256': file_sha256(checkpoint),
        'annotations_sha256': file_sha256(annotations) if annotations else None,
        'classes': list(dataset.metainfo['classes']),
        'num_images': len(dataset),
    }


def choose_codes(cfg: Config, skip: str | None) -> list[SkipConfig] | None:
    """The codes to test; a single one goes into the config, so that a dump of it reloads at that depth.

    Returns:
        None for a detector that has no depth to choose.

    Raises:
        UserError: a code that is not valid, or a skip for such a detector.
    """
    backbone = cfg.model.get('backbone', {})
    kind = backbone.get('type')  # mmengine allows a name, of any scope, or a class
    backbone_class = MODELS.get(kind) if isinstance(kind, str) else kind
    if not (backbone_class and issubclass(backbone_class, AdaptiveDepthBackbone)):
        if skip:
            raise UserError(f'--skip {skip}: {backbone.get("type")} has no depth to choose, leave --skip out')
        return None
    num_stages = backbone.get('num_stages', 4)
    codes = SkipConfig.parse_list(backbone.get('skip', 'F' * num_stages) if skip is None else skip, num_stages)
    if len(codes) == 1:
        backbone['skip'] = str(codes[0])
    return codes


def use_exact_metrics(evaluator: ConfigDict | list[ConfigDict]) -> None:
    """Replace mmdet's CocoMetric in an evaluator's config, in place."""
    for metric in evaluator if isinstance(evaluator, list) else [evaluator]:
        if metric.get('type') in ('CocoMetric', 'mmdet.CocoMetric'):
            metric['type'] = 'ExactCocoMetric'


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
