"""An any-depth detector on mmcv-lite against stock mmdet on a compiled mmcv: a process each, since both are `mmcv`.

    pip install --target COMPILED --no-deps mmcv-2.1.0-….whl
    python tools/benchmarks/mmcv_ops.py COMPILED --images data/coco/val2017

The processes take turns, image by image, with the same weights at FFFF; what they detect is compared to the bit.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parents[2]
OURS, STOCK = 'any-depth, mmcv-lite', 'stock, compiled mmcv'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('compiled', type=Path, help='a folder with a compiled mmcv')
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'faster_rcnn_r50_adn_1x_coco.py'))
    parser.add_argument('--images', help='a folder of images; without, noise')
    parser.add_argument('--shape', type=int, nargs=2, default=(416, 640), metavar=('H', 'W'), help='of the images')
    parser.add_argument('--rounds', type=int, default=30, help='timed images')
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """By name a file of what its process runs: a model's config, its weights, and the batches."""
    sys.path.append(str(ROOT / 'tools'))
    from benchmarks.one_pass import detect_a_fixed_number, initialize
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from adn_mmdet.config import load_config
    from adn_mmdet.cost.images import TimedImages, find_images

    MMLogger.get_instance('benchmark', log_level='WARNING')  # else every initialised weight is a line
    cfg = load_config(args.config)
    source = find_images(cfg, args.images) if args.images else TimedImages()
    batches = list(islice(source.batches(tuple(args.shape), 1), args.rounds))
    detect_a_fixed_number(cfg)
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).eval()
    initialize(detector, batches[:4])
    weights = detector.state_dict()
    files = {OURS: folder / 'ours.pt', STOCK: folder / 'stock.pt'}
    torch.save(dict(model=cfg.model, weights=weights, batches=batches), files[OURS])
    cfg.model.backbone.type = 'ResNet'
    for name in ('skip', 'skip_aware_norm'):
        cfg.model.backbone.pop(name, None)
    weights = {key: value for key, value in weights.items() if '_skip.' not in key}
    torch.save(dict(model=cfg.model, weights=weights, batches=batches), files[STOCK])
    return files


def serve(file: Path, lines: Iterable[str]) -> None:
    """Detect on the image that a line names, and print the seconds; at the end put what was found into the file."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    content = torch.load(file, weights_only=False)
    if content['model'].backbone.type == 'AdaptiveDepthResNet':
        import adn_mmdet  # noqa: F401
    init_default_scope('mmdet')
    detector = MODELS.build(content['model']).eval()
    detector.load_state_dict(content['weights'])
    found = []
    with torch.no_grad():
        for line in lines:
            batch = copy.deepcopy(content['batches'][int(line)])
            start = time.perf_counter()
            instances = detector.test_step(batch)[0].pred_instances
            print(time.perf_counter() - start, flush=True)
            found.append({name: torch.as_tensor(values) for name, values in instances.items()})
    torch.save(found, file)


def start_worker(name: str, file: Path, compiled: Path) -> subprocess.Popen[str]:
    """A process that imports one of the two mmcv."""
    paths = [str(compiled if name == STOCK else ROOT), os.environ.get('PYTHONPATH', '')]
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', __file__, '--serve', str(file)],
        env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, paths))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def take_turns(workers: dict[str, subprocess.Popen[str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, after a first image that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for index in [0, *range(rounds)]:
        for name, worker in workers.items():
            assert worker.stdin and worker.stdout
            print(index, file=worker.stdin, flush=True)
            answer = worker.stdout.readline()
            if not answer:
                for one in workers.values():
                    one.kill()
                raise SystemExit(f'{name}: its process failed, as it says above')
            seconds[name].append(float(answer))
    for worker in workers.values():
        worker.communicate()
    return {name: values[1:] for name, values in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        files = prepare(args, Path(folder))
        workers = {name: start_worker(name, file, args.compiled) for name, file in files.items()}
        seconds = take_turns(workers, args.rounds)
        ours, stock = (torch.load(file) for file in files.values())
    ratios = [one / other for one, other in zip(seconds[OURS], seconds[STOCK], strict=True)]
    equal = all(one.keys() == other.keys() for one, other in zip(ours, stock, strict=True)) and all(
        torch.equal(values, other[name]) for one, other in zip(ours, stock, strict=True) for name, values in one.items()
    )
    for name, values in seconds.items():
        print(f'{name}: {1e3 * median(values):.0f} ms')
    ratio = median(seconds[OURS]) / median(seconds[STOCK])
    print(f'ratio: {ratio:.3f}; median of {len(ratios)} pairs: {median(ratios):.3f}')
    print(f'{", ".join(ours[0])} equal to the bit: {equal}; {len(ours[-1]["scores"])} in the last image')
    print(f'{torch.get_num_threads()} threads; load of the machine: {os.getloadavg()[0]:.2f}')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--serve']:
        serve(Path(sys.argv[2]), sys.stdin)
    else:
        main()
