"""Exported files in float16 or int8, made by onnxruntime's own tools; what follows the networks stays float32.

int8 with calibration images leaves the branches of the backbone's stages as they are, because onnxruntime calibrates
no subgraph; ``dynamic`` reaches into them, and finds the ranges of features at each call.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..files import write_together
from .any_depth import RUNTIME
from .any_depth_runtime import KEY, fit, read_image, resize
from .artifact import in_one_line, opened

if TYPE_CHECKING:
    import onnx

DYNAMIC = 'dynamic'
NETWORKS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')  # operators with weights
IN_HALF = {*NETWORKS, 'BatchNormalization', 'Relu', 'MaxPool', 'Add', 'If'}
MOST = 32  # calibration images


def make_smaller(
    source: str | os.PathLike[str], out: str | os.PathLike[str], int8: Sequence[str] | str | None = None
) -> list[Path]:
    """Write a float32 file of tools/export_any_depth.py in float16, or in int8.

    Args:
        source: the file.
        out: where the other one goes, with ``any_depth_runtime.py`` beside it; what is there is replaced.
        int8: images to calibrate on, or ``dynamic``; None is float16.

    Returns:
        The files.

    Raises:
        UserError: the file cannot be used, an image cannot be read, or onnxruntime cannot convert it.
        OSError: the files cannot be written; what was there is untouched.
    """
    import onnx

    if find_spec('onnxruntime') is None:
        raise UserError('float16 and int8 need the package onnxruntime: pip install onnxruntime')
    about = opened(source).about
    if about['num_parts'] and (int8 is None or int8 == DYNAMIC):  # group norms inside of If become invalid
        raise UserError(
            f"onnxruntime cannot convert {source}, a part's branches among it: ship it in float32, or in int8 with "
            'calibration images'
        )
    try:
        model = _float16(onnx.load(source)) if int8 is None else _int8(source, about, int8)
    except UserError:
        raise
    except Exception as error:  # of as many kinds as a converter may meet
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'onnxruntime cannot convert {source} ({reason}): ship it in float32') from error
    _sort(model.graph)
    del model.metadata_props[:]
    kind = 'float16' if int8 is None else 'int8'
    model.metadata_props.add(key=KEY, value=json.dumps(about | {'precision': kind}))
    files = {Path(out): model.SerializeToString(), Path(out).with_name(RUNTIME.name): RUNTIME.read_bytes()}
    write_together(files)
    return list(files)


def _float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Networks in float16; decoding of boxes and NMS in float32, as float16 has 11 bits, too few for pixels."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    nodes = model.graph.node
    for number, node in enumerate(nodes):  # the converter tells nodes apart by name
        node.name = node.name or f'unnamed_{number}'
    exact = {node.op_type for node in nodes} - IN_HALF
    # Of additions those of residual branches alone, inside of If, where a cast would be put outside of it.
    added = [node.name for node in nodes if node.op_type == 'Add']
    model = convert_float_to_float16(model, keep_io_types=True, op_block_list=sorted(exact), node_block_list=added)
    return model


def _int8(source: str | os.PathLike[str], about: dict[str, Any], images: Sequence[str] | str) -> onnx.ModelProto:
    import onnx
    from onnxruntime import quantization

    logging.getLogger().addFilter(_no_advice)  # about a preparation that has no subgraphs, of the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'int8.onnx'
            given: dict[str, Any] = dict(model_input=source, model_output=path, op_types_to_quantize=[*NETWORKS])
            if images == DYNAMIC:
                unsigned = quantization.QuantType.QUInt8  # onnxruntime has no ConvInteger of signed weights
                quantization.quantize_dynamic(**given, weight_type=unsigned, extra_options={'EnableSubgraph': True})
            else:
                reader = _Calibration(_inputs(about, images))
                quantization.quantize_static(**given, calibration_data_reader=reader, per_channel=True)
            return onnx.load(path)
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return 'pre-processing' not in record.getMessage() and 'to be an initializer' not in record.getMessage()


class _Calibration:
    """onnxruntime's CalibrationDataReader."""

    def __init__(self, inputs: Iterator[dict[str, np.ndarray]]) -> None:
        self.inputs = inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def _inputs(about: dict[str, Any], images: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Each image, the super-net's and the base-net's features in turn."""
    letters = about['num_stages'] + about['num_parts']
    codes = cycle(np.full(letters, flag) for flag in (False, True))
    for path, skip in zip(images[:MOST], codes):
        with in_one_line():
            pixels = read_image(path)
            pixels = resize(pixels, *fit(pixels.shape[1], pixels.shape[0], **about['resize']))
        inputs = {'images': pixels[None], 'skip': skip}
        if about['num_proposals'] is not None:
            inputs['num_proposals'] = np.array(about['num_proposals'])
        yield inputs


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes after those whose outputs they take, inside of branches as well, which both converters overlook."""
    nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    made = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {index: {made[name] for name in _taken(node) if name in made} - {index} for index, node in enumerate(nodes)}
    del graph.node[:]
    graph.node.extend(nodes[index] for index in TopologicalSorter(needs).static_order())


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """What a node takes, with what its branches take from around them."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _taken(inner)
