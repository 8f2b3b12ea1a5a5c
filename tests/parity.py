"""Whether two ways to run a detector find the same, on weights for which scores are not all alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from adn_mmdet import SkipConfig

# The last layers of heads, which start so that all boxes are alike: how far outputs are to spread, and about what.
LAST = {'_cls': (1.5, -2.0), '_reg': (0.3, 0.0), 'centerness': (1.0, 0.0)}


@torch.no_grad()
def make_lively(detector: nn.Module) -> nn.Module:
    """Random last layers with outputs of a fixed spread, so that few scores are tied; in eval mode."""
    generator = torch.Generator().manual_seed(3)
    done = set()

    def draw(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor | None:
        if layer in done:  # another level
            return None
        done.add(layer)
        (spread, middle) = next(value for name, value in LAST.items() if layer.part.endswith(name))
        layer.weight.normal_(generator=generator)
        layer.bias.zero_()
        layer.weight.mul_(spread / layer.forward(*inputs).std())
        layer.bias.add_(middle - layer.forward(*inputs).mean())
        return layer.forward(*inputs)

    hooks = []
    for name, module in detector.eval().named_modules():
        if name.endswith(tuple(LAST)):
            module.part = name
            hooks.append(module.register_forward_hook(draw))
    predict(detector, noise((1, 128, 128, 3)), SkipConfig.super_net(detector.backbone.letter_groups))
    for hook in hooks:
        hook.remove()
    return detector


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Images (N, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@torch.no_grad()
def predict(detector: Any, images: np.ndarray, code: SkipConfig) -> list[InstanceData]:
    """What tools/test.py has of images that were resized already."""
    size = images.shape[1:3]
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=dict(meta)) for _ in images]
    with detector.backbone.using_skip(code):
        data = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1) for image in images], data_samples=samples)
        return [sample.pred_instances for sample in detector.test_step(data)]


def matches(found: dict[str, np.ndarray], image: int, expected: InstanceData) -> np.ndarray:
    """For each detection expected in an image, which one it is; boxes to 0.05 pixels, scores to 1e-4.

    Detections are unordered here, as those of nearly equal scores may stand in either order.
    """
    boxes, scores, labels = (found[name][image, : found['num'][image]] for name in ('boxes', 'scores', 'labels'))
    assert len(boxes) == len(expected)
    near = np.abs(boxes - expected.bboxes.numpy()[:, None]).max(-1, initial=0) < 0.05
    near &= np.abs(scores - expected.scores.numpy()[:, None]) < 1e-4
    near &= labels == expected.labels.numpy()[:, None]
    assert near.any(0).all() and near.any(1).all()
    return near.argmax(1) if len(boxes) else np.empty(0, int)
