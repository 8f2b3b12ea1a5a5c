"""What the scripts share: one line and an exit code for whatever goes wrong, and the flags of train and test."""

from __future__ import annotations

import argparse
import codecs
import functools
import os
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Sequence

try:
    from adn_mmdet import UserError
    from adn_mmdet.config import load_config, require_sections, require_writable
    from adn_mmdet.explain import DEBUG, explain
    from adn_mmdet.ranks import leave_ranks
except ImportError as error:  # the version gate's diagnosis, or a package that is not installed
    print(f'error: {error}', file=sys.stderr)
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print('stopped by Ctrl-C', file=sys.stderr)
    raise SystemExit(130) from None

from mmengine.config import Config, DictAction

warnings.filterwarnings('ignore', 'pkg_resources is deprecated')  # mmengine's, beside every error

Main = Callable[[Sequence[str] | None], None]
CHOICES = {'box': 'bbox_mAP', 'mask': 'segm_mAP', 'top1': 'top1', 'top5': 'top5'}  # what --metric takes
INTERRUPTED = 130  # as shells have it: 128 + SIGINT
# What an encoding such as ASCII has no letter for; other letters lose their accents, the rest becomes a question mark.
PLAIN = str.maketrans({'×': 'x', '–': '-', '—': '-', '…': '...', '≤': '<=', '≥': '>=', '→': '->', '±': '+-', '·': '.'})


def command(main: Main) -> Callable[..., int]:
    """Turn ``main(argv)`` into a function that returns an exit code.

    0, or 2 with one line that says what was given, or 130 after Ctrl-C. With ``ADN_DEBUG=1`` the traceback is printed
    before the line.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, 'reconfigure'):
                stream.reconfigure(errors='plain')
        try:
            main(argv)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return _say('stopped by Ctrl-C', INTERRUPTED) if os.environ.get('RANK', '0') == '0' else INTERRUPTED
        except Exception as error:
            return _say(f'error: {explain(error)}', 2)
        finally:
            _close_output()
            leave_ranks()
        return 0

    return run


def _close_output() -> None:
    """Let Python's own end not fail where nothing more can be printed: a full disk, or a pipe that is closed."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str, code: int) -> int:
    """Print the last line of a script that failed; what a terminal takes for more than text is left out."""
    if os.environ.get(DEBUG):
        traceback.print_exc()
    print(''.join(letter if letter.isprintable() or letter == '\n' else '?' for letter in line), file=sys.stderr)
    return code


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is printed for letters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = unicodedata.normalize('NFKD', error.object[error.start : error.end].translate(PLAIN))
    letters = (letter if letter.isascii() else '' if unicodedata.combining(letter) else '?' for letter in text)
    return ''.join(letters), error.end


codecs.register_error('plain', _plain)


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


def add_point_options(parser: argparse.ArgumentParser, what: str, skip_default: str | None = None) -> None:
    """Add the flags that say at which operating points something is done: ``--skip``, ``--sizes``, ``--proposals``.

    Args:
        parser: of a script.
        what: the verb, such as ``'test'``.
        skip_default: which depths it takes without ``--skip``, in words; None: the config's.
    """
    parser.add_argument(
        '--skip',
        help=f'depths to {what}: a code (TTTT), a comma list of codes (FFFF,TTTT), or all; default '
        f'{skip_default or "those of the config"}',
    )
    parser.add_argument('--sizes', help="short sides of the input in pixels, such as 800,640,480; default the config's")
    parser.add_argument(
        '--proposals',
        help="numbers of region proposals of a two-stage detector, such as 1000,300; default the config's",
    )


def run_config(args: argparse.Namespace, *sections: str) -> Config:
    """The config that the common flags ask for.

    Args:
        args: of :func:`run_parser`.
        *sections: what the run needs of the config.

    Raises:
        UserError: for whatever a user can get wrong in it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    require_sections(cfg, *sections)
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


def budget_of(args: argparse.Namespace) -> tuple[str, float] | None:
    """The budget that ``--budget-ms`` or ``--budget-gmacs`` names: what it is of, and the most."""
    budgets = {'ms': args.budget_ms, 'gmacs': args.budget_gmacs}
    return next(((cost, limit) for cost, limit in budgets.items() if limit is not None), None)
