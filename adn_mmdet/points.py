"""set_point and using_point: run a detector at an operating point, that is at a depth and with a number of proposals.

The input size of a point is up to whoever resizes: :class:`~adn_mmdet.inference.AnyDepthInferencer` asks
:func:`point_in_force`; a test pipeline of another size comes from :func:`~adn_mmdet.input_size.pipeline_at`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mmdet.models.detectors import TwoStageDetector
from torch import nn

from .backbones.adaptive_depth import AdaptiveDepthBackbone, find_backbone
from .backbones.features import unwrap
from .backbones.in_force import force, in_force
from .config import coco_dataset
from .errors import UserError
from .input_size import pipeline_at
from .operating_point import OperatingPoint
from .skip_config import SkipConfig

PointLike = str | SkipConfig | OperatingPoint


class AnyProposals:
    """Mix-in for an RPN, goes before its class: how many proposals it keeps at test time may change between calls.

    mmdet's heads take their test settings as an argument of ``predict_by_feat``. So a call is given its own, with
    another ``max_per_img``; nothing is changed that another thread sees. What an RPN keeps are the first of a list that
    is sorted by score: fewer proposals are the first of more.
    """

    #: The stored number; None is the config's own.
    proposals: int | None = None

    def predict_by_feat(self, *args: Any, cfg: Any = None, **kwargs: Any) -> Any:
        """As the RPN's, with the number of proposals in force where the caller has no settings of its own."""
        number = self._number()
        if cfg is None and number is not None:
            cfg = type(self.test_cfg)({**self.test_cfg, 'max_per_img': number})  # type: ignore[attr-defined]
        return super().predict_by_feat(*args, cfg=cfg, **kwargs)  # type: ignore[misc]

    def _number(self) -> int | None:
        point = in_force(self)  # type: ignore[arg-type]
        return point.proposals if point else self.proposals

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What copies and pickles are made of: their class is looked up by the RPN's own, as no module names it."""
        return _blank, (type(self).__mro__[2],), {**self.__dict__, 'proposals': self._number()}


@functools.cache
def _with_any_proposals(kind: type) -> type:
    return type(kind.__name__, (AnyProposals, kind), {})


def _blank(kind: type) -> Any:
    return object.__new__(_with_any_proposals(kind))


def find_rpn(model: nn.Module) -> nn.Module:
    """The RPN's head of a two-stage detector, whatever wraps it, whose number of proposals can be chosen.

    Raises:
        UserError: the detector has none; single-stage and query-based ones do not.
    """
    detector = unwrap(model)
    if getattr(detector, 'takes_proposals', False):  # an exported file, whose number is an input
        return detector
    rpn = getattr(detector, 'rpn_head', None) if isinstance(detector, TwoStageDetector) else None
    head: Any = getattr(rpn, 'stages', [rpn])[-1]  # Cascade RPN's last stage makes the proposals
    if 'max_per_img' not in (getattr(head, 'test_cfg', None) or {}) or not hasattr(head, 'predict_by_feat'):
        raise UserError(
            f'{type(detector).__name__} has no number of proposals to choose, as two-stage detectors such as Faster '
            'R-CNN have: leave the proposals out (such as /300, --proposals)'
        )
    if not isinstance(head, AnyProposals):
        head.__class__ = _with_any_proposals(type(head))  # type: ignore[arg-type]
    return head


def _rpns(model: nn.Module) -> list[Any]:
    """The RPN of a detector, if it was ever asked for another number of proposals."""
    rpn = getattr(unwrap(model), 'rpn_head', None)
    return [head for head in getattr(rpn, 'stages', [rpn]) if isinstance(head, AnyProposals)]


def require_point(model: nn.Module, point: PointLike) -> OperatingPoint:
    """Read an operating point, and make sure that a detector can run at it.

    Raises:
        UserError: it is not valid, or has a depth or proposals where the detector has none to choose.
    """
    parsed = OperatingPoint.parse(point)
    if parsed.skip is not None:
        parsed = OperatingPoint.parse(parsed, find_backbone(model).letter_groups)
    if parsed.proposals is not None:
        find_rpn(model)
    return parsed


@contextmanager
def using_point(model: nn.Module, point: PointLike) -> Iterator[OperatingPoint]:
    """Run a detector at an operating point inside the ``with`` block, in this thread or task only.

    What the point leaves out is the config's own; of the skip code, the one that is in force. The input size is for
    those who ask :func:`point_in_force`, as AnyDepthInferencer does.

    Args:
        model: a detector, or a wrapper of one.
        point: such as ``'TTFF@640/300'``.

    Yields:
        The point.

    Raises:
        UserError: as :func:`require_point` does.
    """
    parsed = require_point(model, point)
    with ExitStack() as blocks:
        if parsed.skip is not None:
            blocks.enter_context(find_backbone(model).using_skip(parsed.skip))
        for module in (unwrap(model), *_rpns(model)):
            blocks.enter_context(force(module, parsed))
        yield parsed


def set_point(model: nn.Module, point: PointLike) -> None:
    """Change the stored operating point of a detector.

    What the point leaves out is the config's own; a skip code that is left out stays as it is stored. A size changes
    the test pipeline in ``model.cfg``, from which mmdet's ``inference_detector`` makes its own.

    Args:
        model: a detector, or a wrapper of one.
        point: such as ``'TTFF@640/300'``.

    Raises:
        UserError: as :func:`require_point` does; or there is a size, and no ``model.cfg`` or no size that its test
            pipeline can be told. Then nothing is changed.
    """
    parsed, detector = require_point(model, point), unwrap(model)
    cfg = getattr(detector, 'own_cfg', getattr(detector, 'cfg', None))
    if parsed.size is not None:
        if cfg is None:
            raise UserError(
                f'{point}: this {type(detector).__name__} has no cfg whose test pipeline could be resized: '
                "build it by mmdet's init_detector, or resize images by adn_mmdet.input_size.pipeline_at"
            )
        own, cfg = cfg, copy.deepcopy(cfg)
        coco_dataset(cfg.test_dataloader).pipeline = pipeline_at(own, parsed.size)
        detector.own_cfg = own
    if cfg is not None:
        detector.cfg = cfg
    if parsed.skip is not None:
        find_backbone(model).set_skip(parsed.skip)
    for rpn in _rpns(model):
        rpn.proposals = parsed.proposals
    detector.operating_point = parsed


def point_in_force(model: nn.Module) -> OperatingPoint:
    """The operating point that a detector would run at now: that of :func:`using_point`, else the stored one.

    Its skip code is None for a detector that has no depth to choose.
    """
    detector = unwrap(model)
    point = in_force(detector) or getattr(detector, 'operating_point', OperatingPoint())
    backbone = getattr(detector, 'backbone', None)
    skip = backbone.resolve_skip() if isinstance(backbone, AdaptiveDepthBackbone) else None
    return OperatingPoint(skip, point.size, point.proposals)
