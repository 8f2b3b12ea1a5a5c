"""Serve a page on this machine with a depth slider: an image or a video at two operating points, side by side."""

from __future__ import annotations

import argparse
import html
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _command import command
from mmengine.config import Config, DictAction

from adn_mmdet.config import load_config
from adn_mmdet.cost.images import find_images
from adn_mmdet.datasets import make_shapes
from adn_mmdet.inference import AnyDepthInferencer
from adn_mmdet.web import Playground

NUM_EXAMPLES = 3
TERMINATED = 143  # as shells have it: 128 + SIGTERM


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('checkpoint', help='checkpoint file, or an exported .onnx')
    parser.add_argument(
        '--sub-nets', help="sub_nets.json of tools/test.py, or its folder: AP and GMACs, and the slider's positions"
    )
    parser.add_argument(
        '--images', help="a folder of images to take examples from; default the config's test set, else generated ones"
    )
    parser.add_argument('--port', type=int, help='default the first that is free from 7860 on')
    parser.add_argument('--device', help='such as cuda:0 or cpu; default a GPU if there is one')
    parser.add_argument('--allow-untrained', action='store_true', help='run depths of weights without skip-aware norms')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config')
    return parser.parse_args(argv)


def find_examples(cfg: Config, images: str | None, folder: str) -> list[Path]:
    """Three images of a folder or of the config's test set; where that is not there, generated in ``folder``."""
    paths = find_images(cfg, images).paths
    if not paths:
        paths = tuple(map(str, sorted((make_shapes(folder, num_train=1, num_val=NUM_EXAMPLES) / 'val').iterdir())))
    return list(map(Path, paths[:: max(1, len(paths) // NUM_EXAMPLES)][:NUM_EXAMPLES]))


def stop(number: int, frame: Any) -> None:
    """End as Ctrl-C does, so that uploads are removed."""
    raise SystemExit(TERMINATED)


def wait() -> None:
    """Until a signal comes."""
    threading.Event().wait()


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    from adn_mmdet.web.page import serving  # which says, in one line, where Gradio is not installed

    cfg = load_config(args.config, args.cfg_options)
    inferencer = AnyDepthInferencer(
        cfg, args.checkpoint, args.device, allow_untrained=args.allow_untrained, show_progress=False
    )
    playground = Playground(inferencer, args.sub_nets)
    about = html.escape(f'{Path(args.config).stem}, {Path(args.checkpoint).name}, on {inferencer.device}')
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory() as folder:
        examples = find_examples(cfg, args.images, folder)
        with serving(playground, examples, about, args.port) as address:
            print(f'{address} (this machine alone; Ctrl-C ends it)', flush=True)
            wait()


if __name__ == '__main__':
    raise SystemExit(main())
