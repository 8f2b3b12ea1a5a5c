"""Backbone and neck of a plain detector as one graph, for any batch and image size: ONNX and torch.export."""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..backbones import AdaptiveDepthSwin
from ..backbones.vit import AdaptiveDepthViT
from ..errors import UserError

# Sizes that no level of the pyramid shares and none of which is 1, so that the trace takes none for a constant.
EXAMPLE = (2, 3, 160, 224)


class _FeatureExtractor(nn.Module):
    backbone: nn.Module
    neck: nn.Module

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck  # type: ignore[assignment]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(images))


def require_graph(detector: nn.Module) -> None:
    """Refuse what neither ONNX nor torch.export can express.

    Raises:
        UserError: there is no neck, the backbone is a transformer, or one of the two runs an operator of mmcv's own.
    """
    if isinstance(detector.backbone, (AdaptiveDepthSwin, AdaptiveDepthViT)):
        raise UserError(
            f'{type(detector.backbone).__name__} depends on the size of images in Python, so that a graph is right for '
            'one size alone: leave --onnx and --torch-export out'
        )
    if not getattr(detector, 'with_neck', False):
        raise UserError(f'{type(detector).__name__} has no neck: leave --onnx and --torch-export out')
    for module in _FeatureExtractor(detector).modules():
        if type(module).__module__.startswith('mmcv.ops'):
            raise UserError(
                f'{type(module).__name__} runs an operator of mmcv, which neither ONNX nor torch.export has: '
                'leave --onnx and --torch-export out'
            )


def to_onnx(detector: nn.Module) -> bytes:
    """Export backbone and neck to ONNX (opset 17).

    Args:
        detector: a plain detector with a neck, in eval mode.

    Returns:
        An ONNX file: ``images`` (N, 3, H, W), already preprocessed, to ``feat0``, ``feat1`` …, the neck's outputs.

    Raises:
        UserError: the package onnx is not installed.
    """
    if find_spec('onnx') is None:
        raise UserError('--onnx needs the package onnx: pip install onnx')
    model = _FeatureExtractor(detector).eval()
    example = torch.zeros(EXAMPLE)
    with torch.no_grad():
        names = [f'feat{level}' for level in range(len(model(example)))]
    axes = {name: {0: 'batch', 2: f'height_{name}', 3: f'width_{name}'} for name in ('images', *names)}
    with io.BytesIO() as file, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the tracer, about asserts in mmdet's FPN
        # Not dynamo=True: it takes 20 times as long and needs onnxscript, for the same graph.
        torch.onnx.export(
            model,
            (example,),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=['images'],
            output_names=names,
            dynamic_axes=axes,
        )
        return file.getvalue()


def to_exported_program(detector: nn.Module) -> bytes:
    """Export backbone and neck by torch.export.

    Args:
        detector: a plain detector with a neck, in eval mode.

    Returns:
        A file for ``torch.export.load(…).module()``, which takes and returns what :func:`to_onnx` describes.
    """
    sizes = {0: Dim('batch'), 2: Dim('height', min=32), 3: Dim('width', min=32)}
    program = torch.export.export(
        _FeatureExtractor(detector).eval(),
        (torch.zeros(EXAMPLE),),
        dynamic_shapes={'images': sizes},
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    # torch's shape rule of max pooling asks whether a remainder is zero, and the answer for the example is asserted of
    # every later size, although the rule returns the same size either way.
    for node in program.graph.nodes:
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    with io.BytesIO() as file:
        torch.export.save(program, file)
        return file.getvalue()
