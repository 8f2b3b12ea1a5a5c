"""The package's rooms stand in one order, and imports follow it: a room knows those above it in the list, not below."""

import ast
import subprocess
import sys

from tiny import ROOT

PACKAGE = ROOT / 'adn_mmdet'
ORDER = [
    'versions',
    'errors',
    'files',
    'skip_config',
    'operating_point',
    'keys',
    'explain',
    'config',
    'input_size',
    'ranks',
    'ops',
    'backbones',
    'parts',
    'points',
    'distillation',
    'datasets',
    'checkpoints',
    'results',
    'cost',
    'export',
    'training',
    'evaluation',
    'detections',
    'inference',
    'web',
]


def imported(path):
    """The absolute names that a module imports from."""
    parts = ('adn_mmdet', *path.relative_to(PACKAGE).with_suffix('').parts)
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(parts[: -node.level]) if node.level else ''
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield '.'.join(filter(None, (base, name)))


def test_every_room_has_its_place():
    rooms = {path.name.removesuffix('.py') for path in PACKAGE.iterdir() if not path.name.startswith('__')}
    assert rooms == set(ORDER)


def test_no_import_runs_up():
    up = []
    for path in sorted(PACKAGE.rglob('*.py')):
        room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        for name in imported(path) if room in ORDER else ():
            other = (name.split('.') + [''])[1]
            if name.startswith('adn_mmdet.') and ORDER.index(other) > ORDER.index(room):
                up.append(f'{path.relative_to(PACKAGE)} imports {name}')
    assert not up


def test_results_need_neither_torch_nor_mmdet():
    heavy = ('torch', 'mmdet', 'mmengine', 'mmcv')
    found = [
        (path.name, n) for path in (PACKAGE / 'results').glob('*.py') for n in imported(path) if n.startswith(heavy)
    ]
    assert not found


def test_the_package_is_light_to_import():
    """At most 0.3 of what mmdet's models take, beside them; processor time, since machines are busy.

    And it can be imported where there are as few signals as on Windows.
    """
    code = (
        'import signal; del signal.SIGUSR1, signal.sigwaitinfo, signal.pthread_sigmask; '
        'from time import process_time as now; import mmdet.models; a = now(); import adn_mmdet; b = now(); '
        'from adn_mmdet.training.preemption import SIGNALS; print([each.name for each in SIGNALS], a, b)'
    )
    printed = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    models, both = map(float, printed.split()[-2:])
    assert both <= 1.3 * models and "'SIGTERM'" in printed
