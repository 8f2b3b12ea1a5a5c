"""evaluate_sub_nets: a config and a checkpoint at one or more depths, to rows in ``WORK_DIR/sub_nets.json``."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import LOOPS, init_default_scope
from mmengine.runner import BaseLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader

from ..backbones.features import unwrap
from ..checkpoints import load_for_testing
from ..checkpoints.norms import load_norms
from ..config import annotation_file, choose_codes, coco_dataset, require_data
from ..cost.macs import Cost, count_costs, default_input_size
from ..datasets.parsed import build_dataloader, parsed_once
from ..datasets.preparation import prepare_data
from ..errors import UserError
from ..export.artifact import Artifact, is_artifact, require_as_it_is, use_artifact
from ..files import file_sha256
from ..ops.precision import keep_boxes_exact
from ..ranks import once
from ..results.intervals import NUM_DRAWS, pack
from ..results.rows import FILE_NAME, RESAMPLED, Row, Size, SubNetsRun, add_row, held_rows
from ..results.tables import print_table
from .coco_metric import ExactCocoMetric
from .loops import Code, SubNetTestLoop, parse_skips
from .outputs import AtomicDump, outputs_asked, require_outputs


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
        checkpoint: local weights, or a file of tools/export_any_depth.py, which then runs in their place.
        skip: a code, a comma list of codes, or ``all``; None takes ``test_cfg.skips``, else the backbone's.
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
    for section in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(section) is None:
            raise UserError(f'{section} is None or not in {cfg.filename}: a test needs it')
    require_data(cfg.test_dataloader)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    codes = _choose(cfg, skip)
    known = [code for code in codes if code]
    input_size = default_input_size(cfg)
    if is_artifact(checkpoint):
        require_as_it_is(checkpoint, tta=tta, amp=amp, norms=norms)
    _settle(cfg, codes, tta, amp)
    settings, annotations = _settings_sha256(cfg), annotation_file(cfg.test_dataloader)
    architecture = copy.deepcopy(cfg.model)
    if is_artifact(checkpoint):
        use_artifact(cfg, checkpoint)
    with parsed_once():
        prepare_data(cfg, 'test')  # may point to a copy of them
        runner = _TestRunner.from_cfg(cfg)
        runner.codes = codes
        loop = runner.test_loop
    dataset = loop.dataloader.dataset
    if dump:
        device = runner.test_evaluator.metrics[0].collect_device  # several machines share no folder to collect in
        runner.test_evaluator.metrics.append(AtomicDump(out_file_path=dump, collect_device=device))
    for metric in runner.test_evaluator.metrics:
        if isinstance(metric, ExactCocoMetric):
            metric.num_draws = NUM_DRAWS
    outputs = outputs_asked(runner, runner.test_evaluator)
    once(lambda: require_outputs(outputs, codes, dataset), a_machine=True)
    if amp:
        keep_boxes_exact(unwrap(runner.model), torch.device(get_device()))
    if isinstance(runner.model, Artifact):
        runner.model.require_classes(dataset.metainfo['classes'])
        of_weights = runner.model.facts
        runner.counted = MODELS.build(architecture)
    else:
        load_for_testing(runner.model, checkpoint, known, allow_untrained, allow_mismatch)
        of_weights = dict(checkpoint_sha256=file_sha256(checkpoint))
        runner.counted = runner.model
    if norms:
        load_norms(runner.model, norms, of_weights['checkpoint_sha256'], known)
    facts = _Facts(
        name=Path(cfg.filename).stem,
        config=cfg.filename,
        **of_weights,
        annotations_sha256=file_sha256(annotations) if annotations else None,
        classes=list(dataset.metainfo['classes']),
        num_images=len(dataset),
        input_size=Size(list(input_size)),
        settings_sha256=settings,
        norms_sha256=file_sha256(norms) if norms else None,
    )
    has_more = bool(outputs) or any(getattr(hook, 'show', False) for hook in runner.hooks)
    return _test(runner, facts, has_more)


IF_ANY = ('norms_sha256', 'runtime', 'artifact_sha256')  # facts that most runs have none of


@dataclass(frozen=True)
class _Facts(SubNetsRun):
    """What the numbers of a test run depend on, and where they come from: ``run`` in ``sub_nets.json``."""

    config: str = ''

    def said(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value or name not in IF_ANY}


class _TestRunner(Runner):
    """mmengine's Runner whose test is one pass over given codes, and which reads the annotations once."""

    codes: Sequence[Code]
    counted: nn.Module  # whose cost is that of the rows: the model's, or that which an artifact was exported from

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Build it, so that it says which image it could not read."""
        return build_dataloader(dataloader, *args, **kwargs)

    def build_test_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build a SubNetTestLoop, or a loop of the config that is one."""
        if isinstance(loop, BaseLoop):
            return loop
        kind = loop.get('type', 'TestLoop')
        kind = LOOPS.get(kind) if isinstance(kind, str) else kind
        if not (isinstance(kind, type) and issubclass(kind, SubNetTestLoop)):
            self.logger.info(f'{loop.get("type", "TestLoop")} is replaced by SubNetTestLoop: all depths in one pass')
            kind = SubNetTestLoop
        return super().build_test_loop({**loop, 'type': kind, 'skips': self.codes})


class _Recorder(Hook):
    """Writes a row as soon as a sub-network is evaluated, and moves the progress bars on."""

    priority = 'LOWEST'

    def __init__(self, work_dir: str, facts: _Facts, costs: Mapping[Code, Cost], progress: Progress, batches: int):
        self.work_dir, self.facts, self.costs, self.progress = work_dir, facts, costs, progress
        self.batches = progress.add_task('Testing batches', total=batches)
        self.sub_nets = progress.add_task('Evaluating depths', total=len(costs))
        self.rows: list[Row] = []

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Move on by one batch."""
        self.progress.advance(self.batches)

    @master_only
    def after_sub_net(self, runner: Runner, code: Code, metrics: dict[str, Any]) -> None:
        """Make the row, write it, and move on by one sub-network."""
        drawn: dict[str, Any] = {}
        for metric in runner.test_evaluator.metrics:
            drawn |= {f'{name}{RESAMPLED}': pack(aps) for name, aps in getattr(metric, 'resampled', {}).items()}
        row = {'skip': str(code) if code else None, **_numbers(metrics), **asdict(self.costs[code]), **drawn}
        add_row(self.work_dir, self.facts.said(), row)
        self.rows.append(row)
        self.progress.advance(self.sub_nets)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers among metrics, without ``coco/`` before them unless two would have one name; None for NaN.

    mmpretrain's accuracy is in percent; here it is a fraction of 1, as AP.
    """
    named: dict[str, float | None] = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):  # a list or a text: of another metric, and in the log
            continue
        number /= 100 if name.startswith('accuracy/') else 1
        short = name.partition('/')[2] or name
        named[name if short in named else short] = number if abs(number) < float('inf') else None
    return named


def _test(runner: _TestRunner, facts: _Facts, has_more: bool) -> list[Row]:
    """Test what has no row yet; all that is asked for where more than rows is to be written or shown."""
    work_dir, codes = runner.work_dir, runner.codes
    held: list[Row] = once(lambda: held_rows(work_dir, facts.said()))  # other machines may not see that file
    done = set() if has_more else {row['skip'] for row in held}
    todo = [code for code in codes if (str(code) if code else None) not in done]
    if runner.rank == 0 and len(todo) < len(codes):
        names = ', '.join(str(code or facts.name) for code in codes if code not in todo)
        print(f'{names}: in {Path(work_dir) / FILE_NAME} already, from the same weights, data and settings')
    rows = {row['skip']: row for row in held}
    height, width = facts.input_size
    if todo:
        costs = count_costs(runner.counted, [code for code in todo if code] or None, (height, width))
        columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), disable=runner.rank != 0) as progress:
            recorder = _Recorder(work_dir, facts, dict(zip(todo, costs)), progress, len(runner.test_dataloader))
            runner.register_hook(recorder)
            runner.test_loop.codes = todo
            runner.test()
        rows |= {row['skip']: row for row in recorder.rows}
    if runner.rank != 0:
        return []
    in_order = sorted(rows.values(), key=lambda row: row['skip'] or '')
    print_table(in_order, f'{facts.name}, {facts.num_images} images, costs at {height}×{width}')
    return in_order


def _choose(cfg: Config, skip: str | None) -> list[Code]:
    """The codes to test, of a config whose own ``test_cfg.skips`` agree with ``skip`` where it has both.

    Raises:
        UserError: they disagree, or a code is not valid.
    """
    codes = choose_codes(cfg, skip)
    own = cfg.test_cfg.get('skips')
    if codes is None:
        if own is not None:
            raise UserError(f'test_cfg.skips={own}: {cfg.model.backbone.type} has no depth to choose, leave skips out')
        return [None]
    if own is not None:
        named = parse_skips(own, len(codes[0]))
        if skip is not None and set(named) != set(codes):
            raise UserError(
                f'--skip {skip} and test_cfg.skips={own} of the config disagree: leave one of them out '
                '(--cfg-options test_cfg.skips=None)'
            )
        codes = named
    return [*codes]


def _settle(cfg: Config, codes: Sequence[Code], tta: bool, amp: bool) -> None:
    """Change a config to that of a run: exactly these weights, at these codes, on every image."""
    if len(codes) == 1 and codes[0]:  # so that a dump of the config reloads at that depth
        cfg.model.backbone.skip = str(codes[0])
    if tta:
        _use_tta(cfg)
    if amp:
        cfg.test_cfg.fp16 = True
    if cfg.test_dataloader.get('drop_last'):
        cfg.test_dataloader.drop_last = False
        print('test_dataloader.drop_last is switched off: every image is tested')
    cfg.load_from, cfg.resume = None, False  # the checkpoint is loaded strictly, and no other one over it


def _settings_sha256(cfg: Config) -> str:
    """A hash of what else the numbers depend on: model, pipeline, evaluator and loop, without what changes nothing."""
    leave_out = {'skip', 'skips', 'init_cfg', 'train_cfg'}
    leave_out |= {'num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory'}

    def relevant(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: relevant(entry) for name, entry in value.items() if name not in leave_out}
        return [relevant(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    parts = [relevant(cfg.get(name)) for name in ('model', 'test_dataloader', 'test_evaluator', 'test_cfg')]
    if coco_dataset(cfg.test_dataloader).get('indices') is not None:
        parts.append('AP of the images that were tested')  # earlier rows counted the others as missed
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
