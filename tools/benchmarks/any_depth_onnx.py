"""An exported file of all depths against a file a depth and PyTorch: sizes, latency, and what switching costs.

    python tools/benchmarks/any_depth_onnx.py configs/faster_rcnn_r50_adn_1x_coco.py --images data/coco/val2017

Weights are untrained and detect a fixed number of objects. Calls take turns, from a resized image to detections; ratios
are those of medians. OpenVINO is timed as well where it is installed (pip install openvino).
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

try:
    import openvino
except ImportError:
    openvino = None  # it is no part of the set-up

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.one_pass import detect_a_fixed_number, initialize
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from adn_mmdet.config import load_config
from adn_mmdet.cost.images import TimedImages, find_images
from adn_mmdet.cost.timing import interleaved_medians
from adn_mmdet.export.any_depth import any_depth_model
from adn_mmdet.operating_point import OperatingPoint
from adn_mmdet.points import using_point
from adn_mmdet.skip_config import SkipConfig

Run = Callable[..., None]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--codes', default='FFFF,FTTF,TTTT', help='depths that are compared with a file of their own')
    parser.add_argument('--images', help='a folder; default noise')
    parser.add_argument('--size', type=int, nargs=2, default=(480, 640), help='height and width')
    parser.add_argument('--proposals', type=int, default=1000)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=20)
    return parser.parse_args(argv)


def open_session(content: bytes, threads: int) -> Run:
    """What runs an export in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    return partial(run_export, partial(session.run, None), {value.name for value in session.get_inputs()})


def open_in_openvino(content: bytes, threads: int) -> Run:
    """What runs an export in OpenVINO, as ``any_depth_runtime.py`` sets it up."""
    settings = dict(PERFORMANCE_HINT='LATENCY', INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=threads)
    model = openvino.compile_model(openvino.Core().read_model(io.BytesIO(content)), 'CPU', settings)
    return partial(run_export, model.create_infer_request().infer, {value.any_name for value in model.inputs})


def run_export(run: Run, inputs: set[str], supply: Any, proposals: int, *codes: SkipConfig) -> None:
    """Run an export at each code, on the next image."""
    for code in codes:
        given = {'images': next(supply), 'skip': np.array(list(code)), 'num_proposals': np.array(proposals)}
        run({name: given[name] for name in inputs})


@torch.no_grad()
def run_detector(detector: Any, supply: Any, proposals: int, code: SkipConfig) -> None:
    """What mmdet does with a batch."""
    point = OperatingPoint(code, proposals=proposals if detector.with_rpn else None)
    with using_point(detector, point):
        detector.test_step(copy.deepcopy(next(supply)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    cfg = load_config(args.config)
    source = find_images(cfg, args.images) if args.images else TimedImages()
    batches = list(islice(source.batches(tuple(args.size)), 8))
    detect_a_fixed_number(cfg)
    logging.disable(logging.INFO)  # a line for each weight that is drawn
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).eval()
    codes = SkipConfig.parse_list(args.codes, detector.backbone.letter_groups)
    initialize(detector, batches[:4])
    torch.set_num_threads(args.threads)
    images = [batch['inputs'][0].permute(1, 2, 0)[None].contiguous().numpy() for batch in batches]
    content = any_depth_model(detector, None).SerializeToString()
    size, any_depth = len(content), open_session(content, args.threads)
    in_openvino = open_in_openvino(content, args.threads) if openvino else None
    calls: dict[str, Callable[[], None]] = {}
    for code in codes:
        single = any_depth_model(detector, code).SerializeToString()
        ratio = size / len(single)
        print(f'size: {size / 1e6:.1f} MB of all depths, {len(single) / 1e6:.1f} MB of {code}, ratio {ratio:.3f}')
        calls[f'{code} alone'] = partial(open_session(single, args.threads), cycle(images), args.proposals, code)
        calls[f'{code}'] = partial(any_depth, cycle(images), args.proposals, code)
        if in_openvino:
            calls[f'{code} OpenVINO'] = partial(in_openvino, cycle(images), args.proposals, code)
        calls[f'{code} PyTorch'] = partial(run_detector, detector, cycle(batches), args.proposals, code)
    first, last = codes[0], codes[-1]
    for name, pair in {'same': (first, first), 'other': (last, last), 'switched': (first, last)}.items():
        calls[name] = partial(any_depth, cycle(images), args.proposals, *pair)
    seconds = interleaved_medians(calls, args.rounds, warmup=2)
    for code in codes:
        print(f'{code}: {1e3 * seconds[f"{code}"]:.1f} ms of all depths')
        ratios = [('', 'alone'), ('', 'PyTorch'), *([(' OpenVINO', 'PyTorch')] if in_openvino else [])]
        for ours, theirs in ratios:
            ratio = seconds[f'{code}{ours}'] / seconds[f'{code} {theirs}']
            print(f'{code}{ours}, ratio to {theirs} ({1e3 * seconds[f"{code} {theirs}"]:.1f} ms): {ratio:.3f}')
    ratio = 2 * seconds['switched'] / (seconds['same'] + seconds['other'])
    print(f'{first} then {last}, against each of them twice: ratio {ratio:.3f}')
    print(
        f'{args.threads} threads, onnxruntime {onnxruntime.__version__}; load of the machine: {os.getloadavg()[0]:.2f}'
    )


if __name__ == '__main__':
    main()
