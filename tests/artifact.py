"""A hand-made file of the contract of any_depth_runtime.py: what it detects is known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

BOXES = np.array([[0.125, 0.25, 0.5, 0.75], [0.5, 0.1, 0.9, 0.4], [0, 0, 1, 1]], np.float32)  # of width and height
SCORES = np.array([0.9, 0.6, 0.05], np.float32)
ABOUT: dict[str, Any] = dict(
    schema=1,
    classes=['circle', 'rectangle', 'triangle'],
    num_stages=4,
    config='mask_rcnn_r50_adn_1x_coco',
    checkpoint_sha256=None,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    resize=dict(scale=[64, 64], keep_ratio=True),
    max_per_img=3,
    num_proposals=50,
    mask_threshold=0.5,
    rows=[],
)


def make_artifact(path: Path, masks: bool = True, about: dict[str, Any] | None = None, work: int = 0) -> Path:
    """Write a file that finds three objects in every image.

    The boxes are BOXES of its size, the scores SCORES × 0.9^stages that are skipped, and of fewer than three proposals
    only the first are left.

    Args:
        path: where it goes.
        masks: whether it has masks, which are halves of the boxes: the left one, the upper one, the left one.
        about: metadata in place of those of ABOUT.
        work: how many multiplications of large matrices a stage that is not skipped costs.
    """
    nodes, constants = [], []

    def add(kind: str, *inputs: str, **kwargs: Any) -> str:
        name = f'v{len(nodes)}'
        nodes.append(helper.make_node(kind, list(inputs), [name], **kwargs))
        return name

    def constant(value: Any, kind: Any = np.int64) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, kind), name := f'c{len(constants)}'))
        return name

    shape = add('Shape', 'images')
    number = add('Gather', shape, constant([0]))
    size = add('Cast', add('Gather', shape, constant([2, 1, 2, 1])), to=TensorProto.FLOAT)
    skipped = add('ReduceSum', add('Cast', 'skip', to=TensorProto.FLOAT), keepdims=0)
    if work:
        skipped = _with_work(add, constant, skipped, work)
    scores = add('Mul', constant(SCORES, np.float32), add('Pow', constant(0.9, np.float32), skipped))
    rows = {
        'boxes': add('Mul', constant(BOXES, np.float32), size),
        'scores': scores,
        'labels': constant([2, 0, 1]),
        'num': add('Min', constant(3), 'num_proposals'),
    }
    if masks:
        left = np.tile(np.arange(28) < 14, (28, 1)).astype(np.float32)
        rows['masks'] = constant(np.stack([left, left.T, left]), np.float32)
    for name, value in rows.items():
        rest = [] if name == 'num' else [3, *[4] * (name == 'boxes'), *[28, 28] * (name == 'masks')]
        target = add('Concat', number, constant(rest), axis=0) if rest else number
        nodes.append(helper.make_node('Expand', [value, target], [name]))
    kinds = {name: TensorProto.INT64 if name in ('labels', 'num') else TensorProto.FLOAT for name in rows}
    graph = helper.make_graph(
        nodes,
        'artifact',
        [
            helper.make_tensor_value_info('images', TensorProto.UINT8, ['N', 'H', 'W', 3]),
            helper.make_tensor_value_info('skip', TensorProto.BOOL, [4]),
            helper.make_tensor_value_info('num_proposals', TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    content = {**ABOUT, 'mask_threshold': 0.5 if masks else None, **(about or {})}
    helper.set_model_props(model, {'adn_mmdet': json.dumps(content)})
    save(model, path)
    return path


def _with_work(add: Any, constant: Any, skipped: str, work: int) -> str:
    """The number of skipped stages, after what the others cost."""
    matrix = constant(np.eye(256), np.float32)
    for stage in range(4):
        taken = add('Cast', add('Not', add('Gather', 'skip', constant(stage))), to=TensorProto.INT64)
        count = add('Mul', taken, constant(work))
        loop = helper.make_graph(
            [
                helper.make_node('Identity', ['go'], [f'went{stage}']),
                helper.make_node('MatMul', [f'state{stage}', matrix], [f'next{stage}']),
            ],
            f'stage{stage}',
            [
                helper.make_tensor_value_info(f'number{stage}', TensorProto.INT64, []),
                helper.make_tensor_value_info('go', TensorProto.BOOL, []),
                helper.make_tensor_value_info(f'state{stage}', TensorProto.FLOAT, [256, 256]),
            ],
            [
                helper.make_tensor_value_info(f'went{stage}', TensorProto.BOOL, []),
                helper.make_tensor_value_info(f'next{stage}', TensorProto.FLOAT, [256, 256]),
            ],
        )
        done = add('Loop', count, '', matrix, body=loop)
        nothing = add('Mul', add('ReduceMin', done, keepdims=0), constant(0, np.float32))
        skipped = add('Add', skipped, nothing)
    return skipped
