"""Grad-CAM after each block of a stage, at several depths: what skippable sub-paths refine (arXiv 2312.16392, Fig. 6).

Grad-CAM weighs a block's channels by the gradient of a score, averaged over positions, sums them, and keeps what is
positive. The score is the logit of a class; of a detector that of a region (two-stage), or where it is highest (dense).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.models.detectors import BaseDetector
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from torch import Tensor, nn

from ..backbones.adaptive_depth import find_backbone
from ..checkpoints import load_for_testing
from ..config import coco_dataset
from ..errors import UserError
from ..skip_config import SkipConfig

Score = Callable[[Tensor], Tensor]  # of images (1, C, H, W), a scalar


def activation_maps(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    image: str | os.PathLike[str],
    stage: int,
    codes: Sequence[SkipConfig],
    label: int | None = None,
    allow_untrained: bool = False,
) -> tuple[np.ndarray, str, dict[str, dict[str, np.ndarray]]]:
    """Run Grad-CAM after each block of a stage that runs, at each code, for one and the same score.

    Args:
        cfg: a detector's or a classifier's config.
        checkpoint: its weights.
        image: a file.
        stage: 1 to the number of letters of a code.
        codes: the depths.
        label: the class whose score it is; None takes what the super-net is most certain of.
        allow_untrained: run skipped depths of weights without skip-aware norms.

    Returns:
        The image as the model sees it, (H, W, 3) from 0 to 1; what the score is of; and by code and name of a block its
        map, (H, W) from 0 to 1.

    Raises:
        UserError: for whatever a user can get wrong.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    preprocessor = {'data_preprocessor': cfg.data_preprocessor} if cfg.get('data_preprocessor') else {}
    model = MODELS.build({**preprocessor, **cfg.model}).eval()
    backbone = find_backbone(model)
    if not 1 <= stage <= backbone.num_stages:
        raise UserError(f'--stage should be from 1 to {backbone.num_stages}, but got {stage}')
    load_for_testing(model, checkpoint, codes, allow_untrained)
    data = model.data_preprocessor(_read(cfg, image), False)
    score, what = _score(cfg, model, data, label)
    names = {module: name for name, module in backbone.named_modules()}  # in the order in which they run
    path = backbone.sub_paths[stage - 1]
    maps = {}
    for code in codes:
        running = {*path.mandatory, *([] if code.flags[stage - 1] else path.skippable)}
        blocks = [module for module in names if module in running]
        heat = _grad_cam(_Scored(model, code, score), blocks, data['inputs'])
        maps[str(code)] = dict(zip([names[block] for block in blocks], heat))
    return _shown(data['inputs']), what, maps


class _Scored(nn.Module):
    """A model that returns a score, of one image, at a depth."""

    def __init__(self, model: nn.Module, code: SkipConfig, score: Score) -> None:
        super().__init__()
        self.model, self.code, self.score = model, code, score

    def forward(self, inputs: Tensor) -> Tensor:
        with find_backbone(self.model).using_skip(self.code):
            return self.score(inputs).reshape(1)


def _grad_cam(model: nn.Module, blocks: Sequence[nn.Module], inputs: Tensor) -> list[np.ndarray]:
    """The map of each block, (H, W) from 0 to 1."""
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise UserError(
            "this needs grad-cam, without the second OpenCV that it asks for: pip install -e '.[cam]', then "
            'pip install --no-deps grad-cam ttach'
        ) from error
    with GradCAM(model, list(blocks), _as_map(inputs)) as cam:
        cam.compute_input_gradient = True  # so that there are gradients where the first stages are frozen
        targets = [lambda score: score]
        cam(inputs, targets)
        return [heat[0, 0] for heat in cam.compute_cam_per_layer(inputs, targets, False)]


def _as_map(inputs: Tensor) -> Callable[[Any], Tensor]:
    """What makes a block's output a map, (N, C, h, w): of tokens (N, L, C), those behind the class token, if any."""
    height, width = inputs.shape[-2:]

    def reshape(output: Tensor) -> Tensor:
        if output.dim() == 4:
            return output
        for number in (output.shape[1], output.shape[1] - 1):
            h = round(math.sqrt(number * height / width))
            if h and number % h == 0 and abs(number // h * height - h * width) < max(height, width):
                return output[:, -number:].transpose(1, 2).unflatten(2, (h, number // h))
        raise UserError(f'{output.shape[1]} tokens are no map of an image of {height}×{width}')

    return reshape


def _score(cfg: Config, model: Any, data: dict[str, Any], label: int | None) -> tuple[Score, str]:
    """The score, and what it is of."""
    if not isinstance(model, BaseDetector):
        logits = _at_super_net(model, lambda: model.head(model.extract_feat(data['inputs'])))
        label = _require_label(label, logits.shape[-1], int(logits.argmax()))
        return lambda inputs: model.head(model.extract_feat(inputs))[0, label], _name(cfg, label)
    found = _at_super_net(model, lambda: model.predict(data['inputs'], data['data_samples'], rescale=False)[0])
    objects = found.pred_instances
    if label is not None:
        objects = objects[objects.labels == label]
    if not len(objects):
        what = 'nothing' if label is None else f'no {_name(cfg, label)}'
        raise UserError(f'the super-net finds {what} in this image: take another image or class')
    best = objects[int(objects.scores.argmax())]
    chosen = int(best.labels)
    if getattr(model, 'roi_head', None) is None:

        def score(inputs: Tensor) -> Tensor:
            levels = model.bbox_head(model.extract_feat(inputs))[0]
            classes = model.bbox_head.cls_out_channels
            return torch.cat([level.movedim(1, -1).reshape(-1, classes)[:, chosen] for level in levels]).max()

        return score, _name(cfg, chosen)
    rois, box = bbox2roi([best.bboxes]), ', '.join(f'{side:.0f}' for side in best.bboxes[0].tolist())
    return (
        lambda inputs: model.roi_head._bbox_forward(model.extract_feat(inputs), rois)['cls_score'][0, chosen],
        f'{_name(cfg, chosen)} in the box {box}',
    )


def _at_super_net(model: nn.Module, run: Callable[[], Any]) -> Any:
    backbone = find_backbone(model)
    with torch.no_grad(), backbone.using_skip(SkipConfig.super_net(backbone.letter_groups)):
        return run()


def _require_label(label: int | None, num_classes: int, default: int) -> int:
    if label is not None and not 0 <= label < num_classes:
        raise UserError(f'--class should be from 0 to {num_classes - 1}, but got {label}')
    return default if label is None else label


def _name(cfg: Config, label: int) -> str:
    """A class by its name where the config says it."""
    names = (coco_dataset(cfg.test_dataloader).get('metainfo') or {}).get('classes') or ()
    return f'{names[label]} ({label})' if not isinstance(names, str) and label < len(names) else f'class {label}'


def _read(cfg: Config, image: str | os.PathLike[str]) -> dict[str, Any]:
    """An image as a batch of the config's test pipeline."""
    if not Path(image).is_file():
        raise UserError(f'there is no image {image}: check the path')
    steps = [step for step in coco_dataset(cfg.test_dataloader).pipeline if 'LoadAnnotations' not in step.type]
    if 'Load' not in steps[0].type:  # of a data set whose images lie in one file
        steps.insert(0, dict(type='LoadImageFromFile', color_type='grayscale'))
    try:
        with TRANSFORMS.switch_scope_and_registry(None):
            return pseudo_collate([Compose(steps)(dict(img_path=str(image), img_id=0, gt_label=0))])
    except Exception as error:  # of the file system, of cv2, and of mmcv, where cv2 returns nothing
        raise UserError(f'{image} cannot be read as an image ({type(error).__name__}): give another one') from error


def _shown(inputs: Tensor) -> np.ndarray:
    """Preprocessed images (1, C, H, W) as a picture (H, W, 3) from 0 to 1; their darkest value is black."""
    picture = inputs[0].expand(3, -1, -1).permute(1, 2, 0)
    return ((picture - picture.min()) / (picture.max() - picture.min()).clamp(min=1e-6)).numpy()


def draw_maps(picture: np.ndarray, title: str, maps: dict[str, dict[str, np.ndarray]]) -> Figure:
    """One row a depth, one column a block; blocks that a depth skips are left blank."""
    columns = list(dict.fromkeys(name for row in maps.values() for name in row))
    figure = Figure(figsize=(2 * len(columns) + 2.4, 2.2 * len(maps) + 0.4), dpi=120, layout='compressed')
    axes = figure.subplots(len(maps), len(columns) + 1, squeeze=False)
    figure.suptitle(f'Grad-CAM of {title}', fontsize=10, parse_math=False)
    for row, (code, heats) in zip(axes, maps.items()):
        row[0].imshow(picture)
        row[0].set_title(code, fontsize=10, family='monospace')
        for axis, name in zip(row[1:], columns):
            if name in heats:
                axis.imshow(picture)
                axis.imshow(heats[name], cmap='jet', alpha=0.5, vmin=0, vmax=1)
            axis.set_title(name if name in heats else f'{name}\nskipped', fontsize=8)
        for axis in row:
            axis.set_axis_off()
    return figure
