"""ONNX graphs that are traced part by part and joined: alternatives become an ``If``, equal weights are stored once."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8  # of the same time: onnxruntime 1.17 knows up to 9
Value = tuple[str, Sequence[int | str]]  # a numpy dtype and a shape, in which names vary


def trace(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], dynamic: Mapping[str, Sequence[int]]
) -> onnx.GraphProto:
    """Trace a module, each batch norm on its own, so that what surrounds it can be shared.

    Args:
        module: is put in eval mode with all that is inside it: torch sets that mode for the time of the trace alone.
        inputs: examples by name; of sizes that the trace cannot take for constants.
        outputs: names.
        dynamic: which dimensions of an input vary.
    """
    import onnx

    axes = {name: {axis: f'{name}_{axis}' for axis in dims} for name, dims in dynamic.items()}
    with io.BytesIO() as file, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of the tracer, about asserts in mmdet
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            file,  # type: ignore[arg-type]
            dynamo=False,  # 20 times as slow, and it has no mmdet head in it whose sizes vary
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
        return onnx.load_from_string(file.getvalue()).graph


class Graph:
    """A graph to which traced parts are added in the order in which they run.

    Parts are joined by the names of their inputs and outputs. Weights are compared by content, over all parts and
    both alternatives.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self._parts = 0

    def add(self, part: onnx.GraphProto) -> None:
        """Run a part."""
        self.nodes += self._own(part)

    def add_choice(self, flags: str, index: int, parts: Sequence[onnx.GraphProto]) -> None:
        """Run one of two parts with the same inputs and outputs.

        Args:
            flags: the name of a tensor of bools.
            index: of the one that decides.
            parts: what runs where it is false, and what where it is true; of one there is nothing to decide.
        """
        from onnx import helper

        if len(parts) == 1:
            return self.add(parts[0])
        outputs = {output.name: output.type.tensor_type.elem_type for output in parts[0].output}
        name, bodies = next(iter(outputs)), {}
        for key, part in zip(('else_branch', 'then_branch'), parts):
            results = {output: f'{output}/{key}' for output in outputs}
            nodes = self._own(part, results)
            values = [helper.make_tensor_value_info(results[key_], kind, None) for key_, kind in outputs.items()]
            bodies[key] = helper.make_graph(nodes, results[name], [], values)
        flag = f'{flags}/{index}'
        self.nodes += [
            helper.make_node('Constant', [], [f'{flag}/index'], value_int=index),
            helper.make_node('Gather', [flags, f'{flag}/index'], [flag]),
            helper.make_node('If', [flag], list(outputs), name=name, **bodies),
        ]

    def model(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> onnx.ModelProto:
        """The whole graph, with its inputs and outputs by name: each a numpy dtype and a shape."""
        from onnx import helper

        given, found = (
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
                for name, (dtype, shape) in values.items()
            ]
            for values in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, 'any_depth', given, found, initializer=list(self.weights.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)

    def _own(self, part: onnx.GraphProto, outputs: Mapping[str, str] | None = None) -> list[onnx.NodeProto]:
        """A part's nodes under names that no other part has; its weights are added to the graph's."""
        self._parts += 1
        ends = {value.name: value.name for value in (*part.input, *part.output)}
        weights = {weight.name: self._stored(weight) for weight in part.initializer}
        names = {**ends, **weights, **(outputs or {}), '': ''}
        for node in part.node:
            node.name = f'{self._parts}/{node.name}'
            for name in node.output:
                names.setdefault(name, f'{self._parts}/{name}')
        _rename(part.node, names)
        return list(part.node)

    def _stored(self, weight: onnx.TensorProto) -> str:
        """The name under which a weight is stored, which is made of its content."""
        weight.name = ''
        name = hashlib.sha256(weight.SerializeToString(deterministic=True)).hexdigest()
        weight.name = name
        self.weights.setdefault(name, weight)
        return name


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Give values other names, inside the nodes' own graphs as well."""
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
        for graph in (attribute.g for attribute in node.attribute if attribute.HasField('g')):
            _rename(graph.node, names)
