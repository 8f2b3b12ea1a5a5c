"""What the scripts share: errors in one line with exit code 2, and the flags of train and test."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence

try:
    from adn_mmdet import UserError
    from adn_mmdet.config import load_config, require_writable
    from adn_mmdet.ranks import leave_ranks
except ImportError as error:  # the version gate's diagnosis, or a package that is not installed
    print(f'error: {error}', file=sys.stderr)
    raise SystemExit(2) from None

from mmengine.config import Config, DictAction

Main = Callable[[Sequence[str] | None], None]


def command(main: Main) -> Callable[..., int]:
    """Turn ``main(argv)`` into a function that returns an exit code: 0, or 2 for what a user got wrong."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            main(argv)
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        finally:
            leave_ranks()
        return 0

    return run


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what train and test have in common; the names are mmdet's."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file, such as configs/mask_rcnn_r50_adn_1x_coco.py')
    parser.add_argument('--work-dir', help='where results, logs and checkpoints go; default work_dirs/<config name>')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides, such as train_dataloader.batch_size=4'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def run_config(args: argparse.Namespace) -> Config:
    """The config that the common flags ask for."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    require_writable(cfg.work_dir)
    cfg.launcher = args.launcher
    return cfg


def check_skip(args: argparse.Namespace) -> None:
    """Refuse a ``--skip`` and a ``--cfg-options model.backbone.skip=`` that disagree.

    Raises:
        UserError: they do.
    """
    option = (args.cfg_options or {}).get('model.backbone.skip')
    if args.skip is not None and option is not None and args.skip.upper() != option.upper():
        raise UserError(f'--skip {args.skip} and model.backbone.skip={option} disagree: give one of them')
