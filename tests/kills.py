"""Kills each script at random moments and runs it again: python tests/kills.py --number 100.

The rerun must succeed and end at the result of a run that nobody killed, and nothing half-written may be left.
tests/test_training/test_kill.py kills a training that does little but save.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from project import DETECTOR, make_project
from tiny import load_tool

from adn_mmdet.checkpoints import download, load_from_local
from adn_mmdet.datasets import make_shapes

CONFIG = f'configs/{DETECTOR}.py'
PROCESSES = multiprocessing.get_context('fork')  # imports are done; what is killed is the work
Result = dict[str, object]


@dataclass
class Job:
    """A script, what runs it again after a kill, and how to read what it has made."""

    script: str
    arguments: str
    result: Callable[[Path], Result]
    again: str = ''
    out: str = ''  # where it is refused to write again: what is there after a kill has to be whole


def tensors(path: Path, part: str) -> Result:
    content = load_from_local(path, 'cpu')[part]
    return {key: value.sum().item() for key, value in content.items() if isinstance(value, torch.Tensor)}


def files(folder: Path) -> Result:
    return {str(path.relative_to(folder)): path.stat().st_size > 0 for path in folder.rglob('*') if path.is_file()}


def without_paths(path: Path) -> Result:
    return {'rows': json.loads(path.read_text())['rows']}


def rows(path: Path) -> Result:
    content = json.loads(path.read_text())
    runs = content.get('runs', [content])
    return {str(row['skip']): row for run in runs for row in run['rows']}


JOBS = {
    'train': Job(
        'train',
        f'{CONFIG} --work-dir train --cfg-options train_cfg.max_epochs=3 default_hooks.checkpoint.interval=1',
        lambda folder: tensors(folder / 'train/epoch_3.pth', 'state_dict'),
        again='--resume',
    ),
    'test': Job('test', f'{CONFIG} epoch_12.pth --skip all --work-dir test', lambda f: rows(f / 'test/sub_nets.json')),
    'export': Job(
        'export_sub_net', f'{CONFIG} epoch_12.pth out --skip TFTT --onnx', lambda f: files(f / 'out'), out='out'
    ),
    'compare': Job('compare', 'adn --out compare', lambda f: without_paths(f / 'compare/compare.json')),
    'recalibrate': Job(
        'recalibrate',
        f'{CONFIG} epoch_12.pth --skip TTFF --out norms.pth --work-dir recalibrate',
        lambda folder: tensors(folder / 'norms.pth', 'statistics'),
    ),
    'get_weights': Job(
        'get_weights',
        'resnet50vd --out weights',
        lambda folder: tensors(folder / 'weights/resnet50vd_adn_imagenet.pth', 'state_dict'),
    ),
}


def run(folder: Path, script: str, arguments: str) -> None:
    """The child: one script, whose exit code is the process's."""
    os.chdir(folder)
    torch.set_num_threads(1)
    download.SOURCES['resnet50vd'] = download.Source(f'file://{folder}/authors_vd.pth')
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = load_tool(script).main(arguments.split())
    if code:
        print(out.getvalue()[-1500:], file=sys.__stderr__, flush=True)
    os._exit(code)


def finish(folder: Path, job: Job, again: bool) -> float:
    """Run a script to its end; returns the seconds it took."""
    start = time.perf_counter()
    process = PROCESSES.Process(target=run, args=(folder, job.script, f'{job.arguments} {job.again if again else ""}'))
    process.start()
    process.join()
    assert process.exitcode == 0, f'{job.script} ended with {process.exitcode}'
    return time.perf_counter() - start


def kill_once(template: Path, folder: Path, job: Job, seconds: float) -> bool:
    """Kill a run at a random moment; returns whether it still ran."""
    shutil.copytree(template, folder, symlinks=True)
    process = PROCESSES.Process(target=run, args=(folder, job.script, job.arguments))
    process.start()
    process.join(random.uniform(0, 1.05 * seconds))
    was_running = process.is_alive()
    process.kill()
    process.join()
    return was_running


def leftovers(folder: Path, before: set[Path]) -> list[Path]:
    """What no run that ends by itself leaves: files that are half-written, and folders for them."""
    there = {path.relative_to(folder) for path in folder.rglob('*')}
    return [
        path
        for path in there - before
        if path.name.endswith('.partial') or (path.name.startswith('.') and not path.name.endswith('.lock'))
    ]


def make_template(folder: Path) -> Path:
    """The project with a trained checkpoint, rows to compare, and weights to download."""
    shapes = make_shapes(folder / 'shapes', num_train=16, num_val=6, image_size=64)
    (folder / 'project').mkdir()
    template = make_project(folder / 'project', shapes)
    for script, arguments in (
        ('train', f'{CONFIG} --work-dir first'),
        ('test', f'{CONFIG} first/epoch_1.pth --skip FFFF,TTTT --work-dir adn'),
    ):
        finish(template, Job(script, arguments, lambda _: {}), again=False)
    shutil.move(template / 'first/epoch_1.pth', template / 'epoch_12.pth')
    shutil.rmtree(template / 'first')
    from adn_mmdet import AdaptiveDepthResNet

    torch.save(AdaptiveDepthResNet(50, avg_down=True, base_channels=8).state_dict(), template / 'authors_vd.pth')
    return template


def main(number: int, names: list[str]) -> None:
    """Print, by script, how many kills hit a run, and stop at the first thing that is lost."""
    with tempfile.TemporaryDirectory() as scratch:
        template = make_template(Path(scratch))
        for name in names:
            job, hits = JOBS[name], 0
            whole = Path(scratch) / f'{name}_whole'
            shutil.copytree(template, whole, symlinks=True)
            seconds = finish(whole, job, again=False)
            expected, before = job.result(whole), {path.relative_to(template) for path in template.rglob('*')}
            for kill in range(number):
                folder = Path(scratch) / f'{name}_{kill}'
                hits += kill_once(template, folder, job, seconds)
                if not (job.out and (folder / job.out).exists()):
                    finish(folder, job, again=True)
                assert job.result(folder) == expected, f'{name}, kill {kill}: another result'
                assert not leftovers(folder, before), f'{name}, kill {kill}: {leftovers(folder, before)}'
                shutil.rmtree(folder)
            print(
                f'{name}: {number} kills, {hits} of a run of {seconds:.1f} s, all reruns ended at its result',
                flush=True,
            )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--number', type=int, default=17, help='kills of each script')
    parser.add_argument('--jobs', nargs='+', choices=JOBS, default=list(JOBS))
    args = parser.parse_args()
    main(args.number, args.jobs)
