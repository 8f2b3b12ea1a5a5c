"""AnyDepthDetector: builds a stock detector of which more than the backbone can be skipped."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from mmdet.registry import MODELS as DETECTORS
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..backbones.adaptive_depth import SkippablePart, find_backbone
from ..skip_config import SkipConfig
from .necks import share
from .part import Part


@MODELS.register_module(name='AnyDepthDetector')
def any_depth_detector(of: Any, parts: Sequence[dict[str, Any]], **model: Any) -> nn.Module:
    """Build a detector, and make parts of it skippable.

    Args:
        of: the ``type`` of the detector, such as ``'GFL'``.
        parts: configs of parts, such as ``dict(type='SkippableTower', of='bbox_head', keep=2)``. Each adds a letter to
            the detector's skip codes, after those of the backbone: ``FFFF-T``.
        **model: the detector's own config; its ``backbone`` is an adaptive-depth one, whose ``skip`` has all letters.

    Returns:
        The detector, of its stock class and with its stock names; the second set of norms of a part adds ``*_skip``.

    Raises:
        UserError: the backbone has no depth to choose, a part does not fit the detector, or ``skip`` is not valid.
    """
    backbone_config = model['backbone'].copy()
    skip = backbone_config.pop('skip', None)
    detector = DETECTORS.build(dict(model, type=of, backbone=backbone_config))
    backbone = find_backbone(detector)
    attached: list[Part] = [DETECTORS.build(part) for part in parts]
    for part in attached:
        part.attach(detector, backbone)
    share(getattr(detector, 'neck', None), attached)
    backbone.set_skip(SkipConfig.super_net(backbone.letter_groups) if skip is None else skip)
    detector._register_load_state_dict_pre_hook(_clone_norms, with_module=True)
    return detector


def stock_model(model: dict[str, Any], skipped: Iterable[SkippablePart]) -> dict[str, Any]:
    """The config of the detector that is left when parts are skipped.

    Args:
        model: that of the detector; a stock one has no parts. It is left as it is.
        skipped: the parts.

    Returns:
        mmdet's own config but for the backbone; the names of its weights are those that the detector uses then.
    """
    model = copy.deepcopy(model)
    if 'parts' in model:
        model['type'] = model.pop('of')
        del model['parts']
    for part in skipped:
        config = model
        for name in part.of.split('.'):
            config = config[name]
        part.cut(config)
    return model


def _clone_norms(detector: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """Before weights are loaded, which may be those of a stock detector."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in detector.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for part in find_backbone(detector).parts:
        part.clone_norms(state_dict, names, prefix)
