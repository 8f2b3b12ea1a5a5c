"""evaluate_sub_nets: a config and a checkpoint at operating points, to rows in ``WORK_DIR/sub_nets.json``."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
from ..config import coco_dataset, require_data
from ..cost.macs import Cost, count_costs
from ..datasets.parsed import build_dataloader, parsed_once
from ..datasets.preparation import prepare_data
from ..errors import UserError
from ..explain import is_out_of_memory
from ..export.artifact import Artifact, is_artifact, require_as_it_is, use_artifact
from ..files import file_sha256
from ..operating_point import OperatingPoint
from ..ops.precision import keep_boxes_exact
from ..ranks import once
from ..results.intervals import NUM_DRAWS, pack
from ..results.rows import FILE_NAME, RESAMPLED, Row, add_row, held_rows, in_order, point_of
from ..results.tables import print_table
from ..skip_config import SkipConfig
from .coco_metric import ExactCocoMetric
from .facts import ASKED, Facts, choose_points, read_facts, settings_sha256
from .loops import Numbers, SubNetTestLoop
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
    sizes: Numbers | None = None,
    proposals: Numbers | None = None,
) -> list[Row]:
    """Test operating points, write a row each to ``cfg.work_dir/sub_nets.json`` as soon as it is known, and print them.

    Args:
        cfg: a config; it is changed to that of the run.
        checkpoint: local weights, or a file of tools/export_any_depth.py, which then runs in their place.
        skip: a code, a comma list of codes, or ``all``; None takes ``test_cfg.skips``, else the backbone's.
        tta: test-time augmentation (boxes only).
        dump: a .pkl file for the predictions; of several points each gets its own, named after it.
        allow_untrained: test skipped sub-networks of weights without skip-aware norms.
        allow_mismatch: go on although weights are missing or left over.
        norms: a file of :func:`~adn_mmdet.checkpoints.recalibrate`, of this checkpoint and the one code tested.
        amp: mixed precision, float16 on a GPU and bfloat16 on the CPU.
        sizes: short sides of the input in pixels, or a comma list of them; None takes ``test_cfg.sizes``, else the size
            of the test pipeline.
        proposals: numbers of region proposals of a two-stage detector, or a comma list of them; None takes
            ``test_cfg.proposals``, else that of the model.

    Returns:
        All rows of this run, those of earlier calls with the same weights and data included; empty on other ranks.

    Raises:
        UserError: for whatever a user can get wrong; for points that do not fit into the memory, when all others are
            done.
    """
    for section in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(section) is None:
            raise UserError(f'{section} is None or not in {cfg.filename}: a test needs it')
    require_data(cfg.test_dataloader)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    points = choose_points(cfg, skip, sizes, proposals)
    codes = [code for code in dict.fromkeys(point.skip for point in points) if code]
    facts = read_facts(cfg, points, tta)
    if is_artifact(checkpoint):
        require_as_it_is(checkpoint, tta=tta, amp=amp, norms=norms)
    _settle(cfg, codes, tta, amp)
    facts = replace(facts, settings_sha256=settings_sha256(cfg))
    architecture = copy.deepcopy(cfg.model)
    if is_artifact(checkpoint):
        use_artifact(cfg, checkpoint)
    with parsed_once():
        prepare_data(cfg, 'test')  # may point to a copy of them
        runner = _TestRunner.from_cfg(cfg)
        runner.points = points
        loop = runner.test_loop
    dataset = loop.dataloader.dataset
    if dump:
        device = runner.test_evaluator.metrics[0].collect_device  # several machines share no folder to collect in
        runner.test_evaluator.metrics.append(AtomicDump(out_file_path=dump, collect_device=device))
    for metric in runner.test_evaluator.metrics:
        if isinstance(metric, ExactCocoMetric):
            metric.num_draws = NUM_DRAWS
    outputs = outputs_asked(runner, runner.test_evaluator)
    once(lambda: require_outputs(outputs, points, dataset), a_machine=True)
    if amp:
        keep_boxes_exact(unwrap(runner.model), torch.device(get_device()))
    if isinstance(runner.model, Artifact):
        runner.model.require_classes(dataset.metainfo['classes'])
        of_weights = runner.model.facts
        runner.counted = MODELS.build(architecture)
    else:
        load_for_testing(runner.model, checkpoint, codes, allow_untrained, allow_mismatch)
        of_weights = dict(checkpoint_sha256=file_sha256(checkpoint))
        runner.counted = runner.model
    facts = replace(
        facts,
        **of_weights,
        classes=list(dataset.metainfo['classes']),
        num_images=len(dataset),
        norms_sha256=file_sha256(norms) if norms else None,
    )
    if norms:
        load_norms(runner.model, norms, of_weights['checkpoint_sha256'], codes)
    has_more = bool(outputs) or any(getattr(hook, 'show', False) for hook in runner.hooks)
    return _test(runner, facts, has_more)


class _TestRunner(Runner):
    """mmengine's Runner whose test is one pass over given points, and which reads the annotations once."""

    points: Sequence[OperatingPoint]
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
        settings = {key: value for key, value in loop.items() if key not in ASKED}
        return super().build_test_loop({**settings, 'type': kind, 'points': self.points})


class _Recorder(Hook):
    """Writes a row as soon as a point is evaluated, and moves the progress bars on."""

    priority = 'LOWEST'

    def __init__(
        self,
        work_dir: str,
        facts: Facts,
        costs: Mapping[OperatingPoint, Cost],
        progress: Progress,
        batches: int,
    ):
        self.work_dir, self.facts, self.costs, self.progress = work_dir, facts, costs, progress
        self.batches = progress.add_task('Testing batches', total=batches)
        self.points = progress.add_task('Evaluating points', total=len(costs))
        self.rows: list[Row] = []

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Move on by one batch."""
        self.progress.advance(self.batches)

    @master_only
    def after_point(self, runner: Runner, point: OperatingPoint, metrics: dict[str, Any]) -> None:
        """Make the row, write it, and move on by one point."""
        drawn: dict[str, Any] = {}
        for metric in runner.test_evaluator.metrics:
            drawn |= {f'{name}{RESAMPLED}': pack(aps) for name, aps in getattr(metric, 'resampled', {}).items()}
        row = {**self.facts.row(point), **_numbers(metrics), **asdict(self.costs[point]), **drawn}
        add_row(self.work_dir, self.facts.said(), row)
        self.rows.append(row)
        self.progress.advance(self.points)


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


def _test(runner: _TestRunner, facts: Facts, has_more: bool) -> list[Row]:
    """Test what has no row yet; all that is asked for where more than rows is to be written or shown."""
    work_dir, points = runner.work_dir, runner.points
    held: list[Row] = once(lambda: held_rows(work_dir, facts.said()))  # other machines may not see that file
    rows = {point_of(row): row for row in held}
    todo = [point for point in points if has_more or point_of(facts.row(point)) not in rows]
    if runner.rank == 0 and len(todo) < len(points):
        names = ', '.join(str(point) or facts.name for point in points if point not in todo)
        print(f'{names}: in {Path(work_dir) / FILE_NAME} already, from the same weights, data and settings')
    if todo:
        costs, given_up = _count(runner, todo, facts)
        columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), disable=runner.rank != 0) as progress:
            recorder = _Recorder(work_dir, facts, costs, progress, len(runner.test_dataloader))
            runner.register_hook(recorder)
            runner.test_loop.points, runner.test_loop.given_up = todo, given_up
            runner.test()
        rows |= {point_of(row): row for row in recorder.rows}
    if runner.rank != 0:
        return []
    ordered = in_order(rows.values())
    size = 'their sizes' if len(facts.input_sizes) > 1 else '×'.join(map(str, facts.input_size))
    print_table(ordered, f'{facts.name}, {facts.num_images} images, costs at {size}')
    return ordered


def _count(
    runner: _TestRunner, points: Sequence[OperatingPoint], facts: Facts
) -> tuple[dict[OperatingPoint, Cost], dict[OperatingPoint, str]]:
    """The costs of points, and the reason for those that are given up: the memory is too small to count them.

    Raises:
        MemoryError, RuntimeError: it is too small for all of them.
    """
    costs: dict[OperatingPoint, Cost] = {}
    given_up: dict[OperatingPoint, str] = {}
    for size, proposals in dict.fromkeys((point.size, point.proposals) for point in points):
        alike = [point for point in points if (point.size, point.proposals) == (size, proposals)]
        codes = [point.skip for point in alike if point.skip]
        try:
            counted = count_costs(runner.counted, codes or None, facts.input_sizes[size], proposals)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(given_up) + len(alike) == len(points):
                raise
            given_up |= dict.fromkeys(alike, str(error))
        else:
            costs |= dict(zip(alike, counted))
    return costs, given_up


def _settle(cfg: Config, codes: Sequence[SkipConfig], tta: bool, amp: bool) -> None:
    """Change a config to that of a run: exactly these weights, at these codes, on every image."""
    if len(codes) == 1:  # so that a dump of the config reloads at that depth
        cfg.model.backbone.skip = str(codes[0])
    if tta:
        _use_tta(cfg)
    if amp:
        cfg.test_cfg.fp16 = True
    if cfg.test_dataloader.get('drop_last'):
        cfg.test_dataloader.drop_last = False
        print('test_dataloader.drop_last is switched off: every image is tested')
    cfg.load_from, cfg.resume = None, False  # the checkpoint is loaded strictly, and no other one over it


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
