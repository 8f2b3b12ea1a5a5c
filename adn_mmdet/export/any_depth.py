"""Exports a whole detector of every depth as one ONNX file: images and a skip in, detections out."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.adaptive_depth import find_backbone
from ..checkpoints.loading import load_for_testing
from ..checkpoints.safe_loading import load_from_local
from ..config import coco_dataset, require_output
from ..errors import UserError
from ..files import file_sha256, write_together
from ..results.rows import of_weights, read_sub_nets
from ..skip_config import SkipConfig
from .any_depth_runtime import KEY, SCHEMA
from .branches import Graph, trace
from .detections import DenseDetections, TwoStageDetections
from .expressible import require_expressible

if TYPE_CHECKING:
    import onnx

RUNTIME = Path(__file__).with_name('any_depth_runtime.py')
# Of the test pipeline: what leaves an image's pixels where they are.
NO_RESIZING = ('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs')
# Sizes that are neither equal to each other, nor multiples of a stride, so that the trace takes none for a constant.
EXAMPLE = (2, 150, 220, 3)


def export_any_depth(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    sub_nets: str | os.PathLike[str] | None = None,
    allow_untrained: bool = False,
) -> list[Path]:
    """Write a detector with all its depths as one ONNX file, and beside it the module that runs it.

    Args:
        cfg: a config with an adaptive-depth backbone.
        checkpoint: local weights.
        out: the file; one that is there is replaced.
        sub_nets: results of tools/test.py for these weights: a runtime chooses by them.
        allow_untrained: export skipped sub-networks of weights without skip-aware norms.

    Returns:
        The files: ``out``, whose inputs and outputs :func:`any_depth_model` describes, with what a runtime needs to
        know as JSON in its metadata, and ``any_depth_runtime.py``.

    Raises:
        UserError: for whatever a user can get wrong; nothing is written.
    """
    if find_spec('onnx') is None:
        raise UserError('exporting needs the package onnx: pip install onnx')
    require_output(out)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    detector = MODELS.build(copy.deepcopy(cfg.model))  # mmdet's constructors pop entries
    require_expressible(detector)
    resize = _resize(cfg)
    content = load_from_local(checkpoint, map_location='cpu')
    codes = SkipConfig.all(find_backbone(detector).letter_groups)
    load_for_testing(detector, checkpoint, codes, allow_untrained, checkpoint=content)
    sha256 = file_sha256(checkpoint)
    about = {
        'schema': SCHEMA,
        'config': Path(cfg.filename or '').stem,
        'checkpoint_sha256': sha256,
        'classes': _classes(cfg, content, (getattr(detector, 'roi_head', None) or detector).bbox_head.num_classes),
        'resize': resize,
        'rows': _rows(sub_nets, sha256),
        **_settings(detector),
    }
    model = any_depth_model(detector)
    model.metadata_props.add(key=KEY, value=json.dumps(about))
    files = {Path(out): model.SerializeToString(), Path(out).with_name(RUNTIME.name): RUNTIME.read_bytes()}
    try:
        write_together(files)
    except OSError as error:
        raise UserError(f'cannot write {error.filename} ({error.strerror}): give another place') from error
    return list(files)


@torch.no_grad()
def any_depth_model(detector: Any, skip: SkipConfig | None = None) -> onnx.ModelProto:
    """Make a detector an ONNX model (opset 17), each weight stored once.

    Args:
        detector: one that :func:`require_expressible` takes, in eval mode.
        skip: the one depth of the model, to compare with; it has no input ``skip`` then.

    Returns:
        A model for any batch and image size. Inputs: ``images`` (N, H, W, 3) uint8, BGR, already resized; ``skip``
        (letters,) bool; ``num_proposals`` () int64, how many regions of an image are looked at, of a two-stage detector
        alone. Outputs: ``boxes`` (N, K, 4) float32 as x1, y1, x2, y2 in pixels of ``images``; ``scores`` (N, K);
        ``labels`` (N, K) int64; ``num`` (N,) int64, how many of the rows are detections, best first (the rest is
        zeros; K is that of the image with the most, at least 1); with a mask head ``masks`` (N, K, h, w), the
        probabilities of the label over the box.
    """
    import onnx

    backbone, graph = detector.backbone, Graph()
    letters = [(False, True)] * sum(backbone.letter_groups) if skip is None else [(flag,) for flag in skip]
    images, value = torch.zeros(EXAMPLE, dtype=torch.uint8), 'stem'
    graph.add(trace(stem := _Stem(detector), {'images': images}, [value], {'images': (0, 1, 2)}))
    x, outputs = stem(images), {}
    for index, stage in enumerate(backbone.stages):
        parts = [
            trace(_Stage(stage, flag), {value: x}, [f'stage{index}'], {value: (0, 2, 3)}) for flag in letters[index]
        ]
        graph.add_choice('skip', index, parts)
        x, value = stage(x, False), f'stage{index}'
        if index in backbone.out_indices:
            outputs[value] = x
    two_stage = hasattr(detector, 'roi_head')
    names = ['boxes', 'scores', 'labels', 'num', *(['masks'] if two_stage and detector.roi_head.with_mask else [])]
    heads: nn.Module = _Heads(detector)
    if backbone.parts:  # the towers of its dense head
        outputs, heads = _add_towers(graph, detector, outputs, letters[-1]), _Detections(detector)
    given = {'images': images, 'num_proposals': torch.tensor(100), **outputs}
    varying = {'images': (0, 1, 2), **dict.fromkeys(outputs, (0, 2, 3))}
    graph.add(trace(heads, given, names, varying))
    inputs: dict[str, Any] = {'images': ('uint8', ['N', 'H', 'W', 3])}
    inputs |= {'skip': ('bool', [len(letters)])} if skip is None else {}
    inputs |= {'num_proposals': ('int64', [])} if two_stage else {}
    shapes: dict[str, Any] = {
        'boxes': ('float32', ['N', 'K', 4]),
        'scores': ('float32', ['N', 'K']),
        'labels': ('int64', ['N', 'K']),
        'num': ('int64', ['N']),
    }
    shapes |= {'masks': ('float32', ['N', 'K', 'h', 'w'])} if 'masks' in names else {}
    onnx.checker.check_model(model := graph.model(inputs, shapes))
    return model


def _add_towers(graph: Graph, detector: Any, outputs: Mapping[str, Tensor], flags: Iterable[bool]) -> dict[str, Tensor]:
    """Add the neck, and a dense head for each way of its letter.

    Args:
        graph: up to the backbone's stages.
        detector: its one part is the towers of its head.
        outputs: those of the stages that the neck takes, by name.
        flags: the ways that the letter can be.

    Returns:
        What the head returns, by name: all kinds of a level, level by level.
    """
    neck, backbone = _Neck(detector), detector.backbone
    levels = {f'level{index}': feat for index, feat in enumerate(neck(*outputs.values()))}
    varying = dict.fromkeys((*outputs, *levels), (0, 2, 3))
    graph.add(trace(neck, outputs, list(levels), {name: varying[name] for name in outputs}))
    predicted = {f'head{index}': value for index, value in enumerate(_Towers(detector)(*levels.values()))}
    parts = []
    for flag in flags:
        with backbone.using_skip((*backbone.resolve_skip().flags[:-1], flag)):
            parts.append(trace(_Towers(detector), levels, list(predicted), {name: varying[name] for name in levels}))
    graph.add_choice('skip', backbone.num_stages, parts)
    return predicted


class _Neck(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.neck = detector.neck

    def forward(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(outputs))


class _Towers(nn.Module):
    """A dense head, to its predictions at the skip in force."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.head = detector.bbox_head

    def forward(self, *feats: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for level in zip(*self.head(feats)) for value in level)


class _Detections(nn.Module):
    """The detections of what :class:`_Towers` predicts."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detections, self.num_levels = DenseDetections(detector), len(detector.bbox_head.prior_generator.strides)

    def forward(self, images: Tensor, _: Tensor, *predicted: Tensor) -> tuple[Tensor, ...]:
        kinds = len(predicted) // self.num_levels
        by_kind = [predicted[kind::kinds] for kind in range(kinds)]
        return self.detections.detect(by_kind, torch._shape_as_tensor(images)[1:3])


class _Stem(nn.Module):
    """What a detector's ``data_preprocessor`` does with images of one size, and what comes before the first stage."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.given, self.backbone = detector.data_preprocessor, detector.backbone

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2)
        if self.given._channel_conversion:
            x = x.flip(1)
        x = x.float()
        if self.given._enable_normalize:
            x = (x - self.given.mean) / self.given.std
        height, width = -torch._shape_as_tensor(x)[2:] % self.given.pad_size_divisor
        return self.backbone.run_stem(functional.pad(x, (0, width, 0, height), value=self.given.pad_value))


class _Stage(nn.Module):
    def __init__(self, stage: nn.Module, flag: bool) -> None:
        super().__init__()
        self.stage, self.flag = stage, flag

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x, self.flag)


class _Heads(nn.Module):
    """What comes after the last stage."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.neck = detector.neck if detector.with_neck else nn.Identity()
        kind = TwoStageDetections if hasattr(detector, 'roi_head') else DenseDetections
        self.detections = kind(detector)

    def forward(self, images: Tensor, num_proposals: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        return self.detections(self.neck(outputs), torch._shape_as_tensor(images)[1:3], num_proposals)


def _settings(detector: Any) -> dict[str, Any]:
    """What a runtime needs to know of a detector; mean and std are in the graph already."""
    given, roi_head = detector.data_preprocessor, getattr(detector, 'roi_head', None)
    test_cfg = roi_head.test_cfg if roi_head else detector.bbox_head.test_cfg
    scaled = given._enable_normalize
    return {
        'num_stages': detector.backbone.num_stages,
        **({'num_parts': number} if (number := len(detector.backbone.parts)) else {}),
        'mean': given.mean.flatten().tolist() if scaled else [0.0] * 3,
        'std': given.std.flatten().tolist() if scaled else [1.0] * 3,
        'max_per_img': test_cfg.max_per_img,
        'num_proposals': detector.rpn_head.test_cfg.max_per_img if roi_head else None,
        'mask_threshold': test_cfg.mask_thr_binary if roi_head and roi_head.with_mask else None,
    }


def _classes(cfg: Config, checkpoint: Mapping[str, Any], number: int) -> list[str]:
    """Class names, of the checkpoint or else of the data set that the config tests on.

    Raises:
        UserError: there are more or fewer than the detector has.
    """
    dataset = coco_dataset(cfg.test_dataloader)
    known = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    stated = {**DATASETS.get(dataset.type).METAINFO, **(dataset.get('metainfo') or {}), **known}
    classes = list(stated.get('classes') or ())
    if len(classes) != number:
        raise UserError(
            f'the detector has {number} classes, but {len(classes)} are named: set test_dataloader.dataset.metainfo'
        )
    return classes


def _resize(cfg: Config) -> dict[str, Any]:
    """How the test pipeline resizes images.

    Raises:
        UserError: it does something else with them as well.
    """
    steps = [step for step in coco_dataset(cfg.test_dataloader).pipeline if step.type not in NO_RESIZING]
    plain = len(steps) == 1 and steps[0].type == 'Resize' and len(steps[0].get('scale') or ()) == 2
    if not plain or set(steps[0]) - {'type', 'scale', 'keep_ratio'}:
        given = ', '.join(str(dict(step)) for step in steps) or 'nothing'
        raise UserError(
            f'the test pipeline has {given} where an exported detector has one dict(type="Resize", scale=(w, h), '
            'keep_ratio=True or False): change test_dataloader.dataset.pipeline'
        )
    return {'scale': list(steps[0].scale), 'keep_ratio': steps[0].get('keep_ratio', False)}


def _rows(sub_nets: str | os.PathLike[str] | None, sha256: str) -> list[dict[str, Any]]:
    """The rows of a file of results that are of these weights, at the size and proposals of the config."""
    if sub_nets is None:
        return []
    results = of_weights(read_sub_nets(sub_nets), sha256)
    own = (None, None), (results.run.size, results.run.proposals)
    return [row for row in results.rows if (row.get('size'), row.get('proposals')) in own]
