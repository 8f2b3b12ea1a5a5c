"""A held budget while a competing process comes and goes: what frames take, and what is worth what ran.

    python tools/benchmarks/held.py CONFIG CHECKPOINT --sub-nets WORK_DIR --images FOLDER

Prints three figures, each with its goal: the 95th percentile of frame time / budget, 20 frames after each change of
load and on; the mean AP of what ran beside that of the best fixed point that holds the budget under load (its own 95th
percentile within 1.10 × the budget); and what a switch of points costs. Draws ms and point of each frame.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))

from _command import command

from adn_mmdet.config import require_output
from adn_mmdet.cost.timing import require_counts
from adn_mmdet.files import write_atomically
from adn_mmdet.inference import AnyDepthInferencer, list_inputs
from adn_mmdet.inference.controller import BudgetController
from adn_mmdet.inference.held import frame_by_frame
from adn_mmdet.operating_point import OperatingPoint

SETTLED = 20  # frames after a change of load
GOAL, SWITCH_GOAL_MS = 1.10, 1.0
Images = list[str | np.ndarray]


class Scripted(BudgetController):
    """Runs points in an order that is given, whatever they take."""

    def __init__(self, order: Iterable[int]) -> None:
        super().__init__([0.0], 1.0)
        self.order = cycle(order)
        self.index = next(self.order)

    def update(self, ms: float) -> None:
        """Go on to the next point."""
        self.index = next(self.order)


@contextmanager
def load(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes, each of which wants a whole core; they end with this one, however it ends."""
    busy = f'import os\nwhile os.getppid() == {os.getpid()}: pass'
    running = [subprocess.Popen([sys.executable, '-S', '-c', busy]) for _ in range(processes)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_held(
    inferencer: AnyDepthInferencer, images: Images, budget_ms: float, period: int, processes: int
) -> tuple[list[str], np.ndarray]:
    """The point and the ms of each frame, the load on in every second period."""
    points, times = [], []
    predictions = inferencer(images, budget_ms=budget_ms, hold=True)
    for start in range(0, len(images), period):
        with load(processes * (start // period % 2)):
            for prediction in islice(predictions, min(period, len(images) - start)):
                points.append(prediction['point'])
                times.append(prediction['frame_ms'])
    return points, np.array(times)


def run_scripted(
    inferencer: AnyDepthInferencer, images: Images, points: Sequence[OperatingPoint], order: Iterable[int]
) -> np.ndarray:
    """The ms of each image, at points in a given order."""
    predictions = frame_by_frame(inferencer, images, points, Scripted(order))
    return np.array([prediction['frame_ms'] for prediction in predictions])


def settled_p95(times: np.ndarray, budget_ms: float, period: int) -> float:
    """The 95th percentile of time / budget, from SETTLED frames after each change of load, and after the start, on."""
    later = np.arange(len(times)) % period >= SETTLED
    return float(np.quantile(times[later] / budget_ms, 0.95))


def fixed_p95(
    inferencer: AnyDepthInferencer, images: Images, points: Sequence[OperatingPoint], processes: int, rounds: int
) -> np.ndarray:
    """The 95th percentile of ms of each point under load; they take turns, on the same images."""
    repeated = [image for image in islice(cycle(images), rounds) for _ in points]
    with load(processes):
        times = run_scripted(inferencer, repeated, points, range(len(points)))
    return np.quantile(times.reshape(rounds, len(points)), 0.95, axis=0)


def switch_ms(
    inferencer: AnyDepthInferencer, images: Images, points: Sequence[OperatingPoint], rounds: int
) -> tuple[float, float]:
    """What the first frame after a switch takes more than the second, at the same point on the same image.

    The fastest and the best point take turns, AABB on an image and BBAA on the next, so that a new image is no switch.

    Returns:
        The mean of the paired differences without the upper and lower tenth, and half of its 95 % interval.
    """
    last = len(points) - 1
    repeated = [image for image in islice(cycle(images), rounds) for _ in range(4)]
    times = run_scripted(inferencer, repeated, points, [0, 0, last, last, last, last, 0, 0]).reshape(rounds, 4)
    differences = np.sort(times[:, 2] - times[:, 3])
    kept = differences[rounds // 10 : rounds - rounds // 10]
    return float(kept.mean()), float(1.96 * kept.std(ddof=1) / len(kept) ** 0.5)


def picture(names: Sequence[str], ran: Sequence[str], times: np.ndarray, budget_ms: float, period: int) -> bytes:
    """A PNG of ms and point of each frame; where the load is on is grey.

    Args:
        names: of all points, the fastest first.
        ran: the point of each frame.
        times: its ms.
        budget_ms: the budget.
        period: frames after which the load changes.
    """
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=(3, 2), layout='constrained')
    for axes in (upper, lower):
        for start in range(period, len(ran), 2 * period):
            axes.axvspan(start, min(start + period, len(ran)), color='0.9', label=None if start > period else 'load')
    upper.plot(times, '.', markersize=3, label='a frame')
    upper.axhline(budget_ms, color='black', linewidth=1, label=f'budget, {budget_ms:.3g} ms')
    upper.set(ylabel='ms', ylim=(0, 1.1 * max(np.quantile(times, 0.99), budget_ms)))
    upper.legend(loc='lower right', ncols=3)
    lower.step(range(len(ran)), [names.index(name) for name in ran], where='mid', linewidth=1)
    lower.set_yticks(range(len(names)), names, fontsize=7)
    lower.set(xlabel='frame', ylabel='point', xlim=(0, len(ran)))
    found = io.BytesIO()
    figure.savefig(found, format='png', dpi=90)
    plt.close(figure)
    return found.getvalue()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or an exported .onnx')
    parser.add_argument('--images', required=True, help='a folder of images, which are cycled')
    parser.add_argument('--budget-ms', type=float, help='default what the middle point of the front holds under load')
    parser.add_argument('--sub-nets', help='sub_nets.json of tools/test.py, or its folder: what points are worth')
    parser.add_argument('--frames', type=int, default=600, help='default 600')
    parser.add_argument('--period', type=int, default=100, help='frames after which the load changes; default 100')
    parser.add_argument('--processes', type=int, default=2, help='that compete, each wants a core; default 2')
    parser.add_argument('--threads', type=int, default=1, help='of the detector; default 1, as narrow layers want')
    parser.add_argument('--rounds', type=int, default=100, help='frames of each fixed point, and switches; default 100')
    parser.add_argument('--plot', type=Path, help='a .png of ms and point over time')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    require_counts(frames=args.frames, period=args.period - SETTLED, processes=args.processes, rounds=args.rounds - 9)
    if args.plot:
        require_output(args.plot)
    torch.set_num_threads(args.threads)
    images: Images = list_inputs(args.images)  # type: ignore[assignment]
    with TemporaryDirectory() as cache:  # so that points are timed now, on this machine as it is
        options = dict(sub_nets=args.sub_nets, images=args.images, cache_dir=cache, show_progress=False)
        inferencer = AnyDepthInferencer(args.config, args.checkpoint, 'cpu', **options)
        inferencer.calibrate()
    front = inferencer.fronts[1]
    points = [OperatingPoint.parse(point.skip) for point in front]
    worth = {point.skip: point.accuracy for point in front}
    fixed_ms = fixed_p95(inferencer, images, points, args.processes, args.rounds)
    budget_ms = args.budget_ms or float(fixed_ms[len(points) // 2])
    print(f'{os.cpu_count()} cores, {args.threads} threads, load {os.getloadavg()[0]:.1f}, budget {budget_ms:.1f} ms')
    frames = list(islice(cycle(images), args.frames))
    ran, times = run_held(inferencer, frames, budget_ms, args.period, args.processes)
    held, held_worth = settled_p95(times, budget_ms, args.period), np.mean([worth[name] for name in ran])
    for point, ratio in zip(front, fixed_ms / budget_ms):
        share = np.mean([name == point.skip for name in ran])
        print(
            f'{point.skip:14} {point.cost:7.1f} ms calibrated  AP {100 * point.accuracy:6.2f}  '
            f'under load 95 % within {ratio:.2f} × budget  ran in {share:.0%} of frames'
        )
    holding = [point for point, ratio in zip(front, fixed_ms / budget_ms) if ratio <= GOAL]
    fixed = f'{100 * holding[-1].accuracy:.2f} ({holding[-1].skip})' if holding else 'none, which holds it'
    switched, half = switch_ms(inferencer, images, points, args.rounds)
    print(f'95 % of settled frames within {held:.3f} × budget (goal: at most {GOAL:.2f})')
    print(f'mean AP of what ran {100 * held_worth:.2f}; best fixed point under load {fixed} (goal: at least that)')
    print(f'a switch adds {switched:.2f} ± {half:.2f} ms (goal: at most {SWITCH_GOAL_MS:g})')
    if args.plot:
        write_atomically(args.plot, picture([point.skip for point in front], ran, times, budget_ms, args.period))


if __name__ == '__main__':
    raise SystemExit(main())
