"""What a test is asked for and what its numbers depend on: read from a config before it is changed for the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config import annotation_file, choose_codes, coco_dataset
from ..errors import UserError
from ..files import file_sha256
from ..input_size import default_input_size, own_point
from ..operating_point import OperatingPoint
from ..results.rows import Row, Size, SubNetsRun
from ..skip_config import SkipConfig
from .loops import Numbers, parse_each, parse_points, parse_skips

ASKED = ('skips', 'sizes', 'proposals', 'points')  # of test_cfg: which points are tested
IF_ANY = ('norms_sha256', 'runtime', 'artifact_sha256')  # facts that most runs have none of


def choose_points(
    cfg: Config, skip: str | None, sizes: Numbers | None, proposals: Numbers | None
) -> list[OperatingPoint]:
    """The points to test, of a config whose own ``test_cfg`` agrees with what is given where it has both.

    Raises:
        UserError: they disagree, or a code or a number is not valid.
    """
    codes = _choose_codes(cfg, skip)
    points = parse_points(codes, _agreed(cfg, 'sizes', sizes), _agreed(cfg, 'proposals', proposals))
    own = own_point(cfg)
    return list(dict.fromkeys(point.relative_to(own) for point in points))


def _agreed(cfg: Config, key: str, given: Numbers | None) -> Numbers | None:
    """What is given, else what ``test_cfg`` has."""
    own = cfg.test_cfg.get(key)
    if given is None or own is None:
        return own if given is None else given
    if set(parse_each(key, given)) != set(parse_each(key, own)):
        raise UserError(
            f'--{key} {given} and test_cfg.{key}={own} of the config disagree: leave one of them out '
            f'(--cfg-options test_cfg.{key}=None)'
        )
    return given


def _choose_codes(cfg: Config, skip: str | None) -> list[SkipConfig | None]:
    """The codes to test; ``[None]`` of a net that has no depth to choose."""
    codes = choose_codes(cfg, skip)
    own = cfg.test_cfg.get('skips')
    if codes is None:
        if own is not None:
            raise UserError(f'test_cfg.skips={own}: {cfg.model.backbone.type} has no depth to choose, leave skips out')
        return [None]
    if own is not None:
        named = parse_skips(own, codes[0].groups)
        if skip is not None and set(named) != set(codes):
            raise UserError(
                f'--skip {skip} and test_cfg.skips={own} of the config disagree: leave one of them out '
                '(--cfg-options test_cfg.skips=None)'
            )
        codes = named
    return [*codes]


@dataclass(frozen=True)
class Facts(SubNetsRun):
    """What the numbers of a test run depend on, and where they come from: ``run`` in ``sub_nets.json``.

    Attributes:
        input_sizes: height and width in pixels that a point's cost is counted at, by the point's size; not written.
    """

    config: str = ''
    input_sizes: Mapping[int | None, tuple[int, int]] = field(default_factory=dict)

    def said(self) -> dict[str, Any]:
        """What is written of the run."""
        run = {name: value for name, value in asdict(self).items() if value or name not in IF_ANY}
        del run['input_sizes']
        return run

    def row(self, point: OperatingPoint) -> Row:
        """The keys of a point's row, which say what the point leaves to the config."""
        return point.filled(OperatingPoint(None, self.size, self.proposals)).as_row()


def read_facts(cfg: Config, points: Sequence[OperatingPoint], tta: bool) -> Facts:
    """What a config says of a run, as the user has it; what is not known before the run is filled in later."""
    if tta and any(point.size or point.proposals for point in points):
        raise UserError('--tta has views of its own: leave --sizes and --proposals out')
    annotations, own = annotation_file(cfg.test_dataloader), own_point(cfg)
    input_sizes = {size: default_input_size(cfg, size) for size in {None, *(point.size for point in points)}}
    return Facts(
        name=Path(cfg.filename).stem,
        config=cfg.filename,
        checkpoint_sha256=None,
        annotations_sha256=file_sha256(annotations) if annotations else None,
        classes=[],
        num_images=0,
        input_size=Size(list(input_sizes[None])),
        size=own.size,
        proposals=own.proposals,
        input_sizes=input_sizes,
    )


def settings_sha256(cfg: Config) -> str:
    """A hash of what else the numbers depend on: model, pipeline, evaluator and loop, without what changes nothing."""
    leave_out = {'skip', 'init_cfg', 'train_cfg'}
    leave_out |= {'num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory'}

    def relevant(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: relevant(entry) for name, entry in value.items() if name not in leave_out}
        return [relevant(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    test_cfg = {key: value for key, value in cfg.test_cfg.items() if key not in ASKED}
    parts = [*(relevant(cfg.get(name)) for name in ('model', 'test_dataloader', 'test_evaluator')), relevant(test_cfg)]
    if coco_dataset(cfg.test_dataloader).get('indices') is not None:
        parts.append('AP of the images that were tested')  # earlier rows counted the others as missed
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
