"""Which detectors can be one ONNX file: those whose every part is one that detections.py does as mmdet does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.models import (
    AnchorHead,
    BBoxHead,
    DetDataPreprocessor,
    FCNMaskHead,
    GFLHead,
    RPNHead,
    SingleRoIExtractor,
    SingleStageDetector,
    StandardRoIHead,
    TwoStageDetector,
)
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules import (
    AnchorGenerator,
    DeltaXYWHBBoxCoder,
    DistancePointBBoxCoder,
    MlvlPointGenerator,
)
from torch import nn

from ..backbones.adaptive_depth import find_backbone
from ..backbones.resnet import AdaptiveDepthResNet
from ..errors import UserError
from ..parts import SkippableTower

DENSE = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
NMS_SETTINGS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}  # the last changes nothing but memory


def require_expressible(detector: nn.Module) -> None:
    """Refuse a detector that has a part of another kind.

    Raises:
        UserError: names the part.
    """
    for part in _other_parts(detector):
        raise UserError(
            f'{part} cannot be exported: a whole detector is a Faster R-CNN, a Mask R-CNN, or one with a dense head '
            'such as RetinaNet, FCOS, ATSS or GFL, on a ResNet, ResNeXt or RegNet, with plain NMS'
        )


def _other_parts(detector: Any) -> Iterator[str]:
    """What cannot be expressed, as a text that can begin a sentence."""
    backbone = find_backbone(detector)
    towers = [part for part in backbone.parts if isinstance(part, SkippableTower) and part.of == 'bbox_head']
    if backbone.parts and backbone.parts != towers:
        yield f'a detector with a skippable {", ".join(part.of for part in backbone.parts if part not in towers)}'
    if backbone is not detector.backbone or type(backbone).forward is not AdaptiveDepthResNet.forward:  # its kin's too
        yield f'the backbone {type(backbone).__name__}'
    for name, module in detector.named_modules():
        if type(module).__module__.startswith('mmcv.ops') and 'roi_layers' not in name:
            yield f'{type(module).__name__} ({name}), an operator of mmcv,'
    if type(detector.data_preprocessor) is not DetDataPreprocessor:
        yield f'the data_preprocessor {type(detector.data_preprocessor).__name__}'
    if _has(detector, TwoStageDetector, 'predict', 'extract_feat'):
        yield from _other_two_stage(detector)
    elif _has(detector, SingleStageDetector, 'predict', 'extract_feat'):
        yield from _other_dense(detector.bbox_head)
    else:
        yield f'the detector {type(detector).__name__}'


def _other_dense(head: Any) -> Iterator[str]:
    kinds: list[type] = [BaseDenseHead, GFLHead]
    if not any(_has(head, kind, *DENSE) for kind in kinds):
        yield f'the head {type(head).__name__}'
        return
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        yield f'the loss {type(head.loss_cls).__name__}, which has classes of its own,'
    yield from _other_boxes(head, 'bbox_head')
    yield from _other_nms(head.test_cfg, 'test_cfg')


def _other_two_stage(detector: Any) -> Iterator[str]:
    rpn, roi = detector.rpn_head, detector.roi_head
    if not _has(rpn, RPNHead, *DENSE):
        yield f'the head {type(rpn).__name__}'
        return
    if type(roi) is not StandardRoIHead or roi.with_shared_head:
        yield f'the head {type(roi).__name__}' + (' with a shared head' if type(roi) is StandardRoIHead else '')
        return
    head = roi.bbox_head
    plain = head.with_cls and head.with_reg and not head.custom_cls_channels
    if not (_has(head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single') and plain):
        yield f'the head {type(head).__name__} with {type(head.loss_cls).__name__}'
        return
    if roi.with_mask and type(roi.mask_head) is not FCNMaskHead:
        yield f'the head {type(roi.mask_head).__name__}'
    extractors = [roi.bbox_roi_extractor, *([roi.mask_roi_extractor] if roi.with_mask else [])]
    for extractor in extractors:
        layer = extractor.roi_layers[0]
        if type(extractor) is not SingleRoIExtractor or getattr(layer, 'pool_mode', None) != 'avg':
            yield f'{type(extractor).__name__} with {layer}'
    yield from _other_boxes(rpn, 'rpn_head')
    yield from _other_boxes(head, 'bbox_head')
    yield from _other_nms(rpn.test_cfg, 'test_cfg.rpn')
    yield from _other_nms(roi.test_cfg, 'test_cfg.rcnn')


def _other_boxes(head: Any, name: str) -> Iterator[str]:
    coder, priors = head.bbox_coder, getattr(head, 'prior_generator', None)
    if type(coder) not in (DeltaXYWHBBoxCoder, DistancePointBBoxCoder) or not coder.clip_border or coder.use_box_type:
        yield f'{type(coder).__name__} of {name} with these settings'
    if priors is not None and type(priors) not in (AnchorGenerator, MlvlPointGenerator):
        yield f'{type(priors).__name__} of {name}'
    if isinstance(head, AnchorHead) and head.reg_decoded_bbox and name == 'rpn_head':
        yield f'reg_decoded_bbox of {name}'


def _other_nms(cfg: Any, name: str) -> Iterator[str]:
    nms = cfg.get('nms') or {'type': 'no NMS'}
    if nms.get('type', 'nms') != 'nms':
        yield f'{nms["type"]} of {name}.nms'
    elif other := set(nms) - NMS_SETTINGS:
        yield f'{", ".join(sorted(other))} of {name}.nms'


def _has(part: Any, kind: type, *methods: str) -> bool:
    """Whether a part is of a kind and has its methods unchanged."""
    return isinstance(part, kind) and all(getattr(type(part), name) is getattr(kind, name) for name in methods)
