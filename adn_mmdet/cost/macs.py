"""What each sub-network costs: multiply-accumulates (MACs) and parameters, without any data.

One MAC is one multiplication and one addition; the detection literature calls MACs "FLOPs".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.structures import DetDataSample
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..backbones.adaptive_depth import find_backbone
from ..backbones.features import unwrap
from ..input_size import default_input_size
from ..operating_point import OperatingPoint
from ..points import find_rpn
from ..skip_config import SkipConfig

Macs = dict[nn.Module | None, int]  # of every module


@dataclass(frozen=True)
class Cost:
    """The cost of one sub-network for one image.

    Attributes:
        gmacs: 1e9 multiply-accumulates of backbone, neck and heads.
        params_held_m: 1e6 parameters in memory, of all sub-networks.
        params_active_m: 1e6 parameters that this sub-network uses.
    """

    gmacs: float
    params_held_m: float
    params_active_m: float


@dataclass(frozen=True)
class CostByPart(Cost):
    """A cost and what it is made of; rows of results hold the totals only.

    Attributes:
        backbone_gmacs: the backbone's share of ``gmacs``.
        neck_gmacs: the neck's.
        heads_gmacs: that of the heads, and of whatever else there is.
    """

    backbone_gmacs: float
    neck_gmacs: float
    heads_gmacs: float

    @property
    def total(self) -> Cost:
        """The same without its parts, as rows of results hold it."""
        return Cost(self.gmacs, self.params_held_m, self.params_active_m)


class _Heads(nn.Module):
    """A detector's forward with a fixed number of region proposals, so that its cost depends on no weights."""

    def __init__(self, detector: nn.Module, num_proposals: int) -> None:
        super().__init__()
        self.detector = detector
        self.num_proposals = num_proposals

    def forward(self, image: Tensor) -> object:
        detector, (height, width) = self.detector, image.shape[-2:]
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), batch_input_shape=(height, width)))
        if isinstance(detector, SingleStageDetector):
            return detector.bbox_head(detector.extract_feat(image))
        if not isinstance(detector, TwoStageDetector):
            return detector(image, [sample], mode='tensor')
        feats = detector.extract_feat(image)
        box = image.new_tensor([[0, 0, width / 2, height / 2]])
        proposals = InstanceData(bboxes=box.repeat(self.num_proposals, 1))
        return detector.rpn_head(feats), detector.roi_head(feats, [proposals], [sample])


def count_costs(
    model: nn.Module, codes: Iterable[SkipConfig] | None, input_size: tuple[int, int], proposals: int | None = None
) -> list[Cost]:
    """The totals of :func:`count_costs_by_part`."""
    return [cost.total for cost in count_costs_by_part(model, codes, input_size, proposals)]


def count_costs_of_points(
    model: nn.Module, points: Sequence[OperatingPoint], input_size: Config | tuple[int, int]
) -> list[CostByPart]:
    """Count the cost of each operating point for one image.

    Args:
        model: a detector, or a wrapper of one.
        points: their codes are None for a detector that has no depth to choose.
        input_size: its config, whose test pipeline has an input size for each point; or a height and width in pixels,
            whatever the size of a point.

    Returns:
        One cost a point; what is traced depends on size and proposals alone, and is traced once.

    Raises:
        UserError: a size that the test pipeline cannot be told, or proposals of a detector that has none.
    """
    costs: dict[OperatingPoint, CostByPart] = {}
    for size, proposals in dict.fromkeys((point.size, point.proposals) for point in points):
        alike = [point for point in points if (point.size, point.proposals) == (size, proposals)]
        codes = [point.skip for point in alike if point.skip]
        shape = default_input_size(input_size, size) if isinstance(input_size, Config) else input_size
        counted = count_costs_by_part(model, codes or None, shape, proposals)
        costs.update(zip(alike, counted if codes else counted * len(alike)))
    return [costs[point] for point in points]


def count_costs_by_part(
    model: nn.Module, codes: Iterable[SkipConfig] | None, input_size: tuple[int, int], proposals: int | None = None
) -> list[CostByPart]:
    """Count the cost of each sub-network for one image.

    A detector is traced once for each way of the letters that come after the backbone's, with all stages run whole; a
    skipped stage saves its skippable blocks.

    Args:
        model: a detector.
        codes: sub-networks; None for a detector that has no depth to choose.
        input_size: height and width in pixels.
        proposals: of a two-stage detector, how many regions its RoI heads look at (100 of them, at most, for masks, as
            mmdet counts); None takes as many as its test settings keep at most, 1000 on COCO.

    Returns:
        One cost a code; one cost for None.

    Raises:
        UserError: proposals of a detector that has none.
    """
    detector = unwrap(model)
    if proposals is not None:
        find_rpn(detector)  # refuses
    backbone = None if codes is None else find_backbone(detector)
    held = _count_parameters([detector])

    def cost(macs: Macs, skipped: Sequence[nn.Module] = (), idle: Sequence[nn.Module] = ()) -> CostByPart:
        def run(part: nn.Module | None) -> float:
            inside = set(part.modules()) if part else ()
            return (macs.get(part, 0) - sum(macs[block] for block in skipped if block in inside)) / 1e9

        total, of_backbone, of_neck = run(detector), run(detector.backbone), run(getattr(detector, 'neck', None))
        return CostByPart(
            gmacs=total,
            params_held_m=held / 1e6,
            params_active_m=(held - _count_parameters([*skipped, *idle])) / 1e6,
            backbone_gmacs=of_backbone,
            neck_gmacs=of_neck,
            heads_gmacs=total - of_backbone - of_neck,
        )

    if backbone is None or codes is None:
        return [cost(_trace(detector, nullcontext(), input_size, proposals))]
    traced: dict[tuple[bool, ...], Macs] = {}
    costs = []
    for code in codes:
        flags = (False,) * backbone.num_stages + code.flags[backbone.num_stages :]
        if flags not in traced:
            traced[flags] = _trace(detector, backbone.using_skip(flags), input_size, proposals)
        costs.append(cost(traced[flags], backbone.skipped_blocks(code), backbone.idle_norms(code)))
    return costs


def _trace(
    detector: nn.Module,
    at_depth: AbstractContextManager[Any],
    input_size: tuple[int, int],
    proposals: int | None,
) -> Macs:
    """The MACs of every module of a model inside a ``with`` block."""
    was_training, parameter = detector.training, next(detector.parameters())
    detector.eval()
    try:
        wrapped = _Heads(detector, proposals or _num_proposals(detector))
        channels = next(module.in_channels for module in detector.modules() if isinstance(module, nn.Conv2d))
        channels = min(channels, 3)  # CSPDarknet's first one reads four pixels at once
        image = torch.zeros(1, channels, *input_size, device=parameter.device, dtype=parameter.dtype)
        counter = FlopAnalyzer(wrapped, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counter.set_op_handle('aten::scaled_dot_product_attention', _attention_macs)
        with torch.no_grad(), at_depth:
            macs = counter.by_module()
    finally:
        detector.train(was_training)
    # The heads are called one by one, so that the total is that of what calls them.
    return {module: macs[f'detector.{name}'] for name, module in detector.named_modules()} | {detector: macs['']}


def _num_proposals(detector: nn.Module) -> int:
    return (getattr(detector, 'test_cfg', None) or {}).get('rpn', {}).get('max_per_img', 1000)


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Those of queries by keys and of weights by values, which mmengine does not count; (…, L, C) each."""
    queries, keys, values = (value.type().sizes() for value in inputs[:3])
    return math.prod(queries) * keys[-2] + math.prod(queries[:-1]) * keys[-2] * values[-1]


def _count_parameters(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for parameter in {each for module in modules for each in module.parameters()})
