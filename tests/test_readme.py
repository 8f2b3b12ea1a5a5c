"""What README and docs show is what works: their commands and their Python run here as written, on narrow nets."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import VISBACKENDS, init_default_scope
from project import CLASSIFIER, DETECTOR, make_project
from tiny import ROOT, load_tool

from adn_mmdet.config import load_config

PAGES = {path.stem: path.read_text(encoding='utf-8') for path in (ROOT / 'README.md', *ROOT.glob('docs/*.md'))}
WORK_DIR = f'work_dirs/{DETECTOR}'
NEED_A_CLUSTER = ('bash tools/dist_', 'srun ')  # tests/test_dist_scripts.py runs those scripts
TAKE_MINUTES = tuple(f'python tools/benchmarks/{name}' for name in ('ablations.py', 'fashion_', 'held.py'))


def blocks(page, kind=''):
    return [block for found, block in re.findall(r'```(\w*)\n(.*?)```', PAGES[page], re.DOTALL) if found == kind]


def commands(page):
    """The commands of a page, each on one line."""
    return [line.strip() for block in blocks(page) for line in block.replace('\\\n', ' ').splitlines() if line.strip()]


@pytest.fixture(scope='module')
def project(tmp_path_factory, shapes):
    return make_project(tmp_path_factory.mktemp('project'), shapes)


@pytest.fixture(scope='module')
def trained_project(project):
    """The same after the README's training and test: its checkpoint, and the work folder of a run of all depths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv('XDG_CACHE_HOME', str(project / 'cache'))
        _, train, test = [
            line for line in commands('README') if re.match('python tools/(get_weights|train|test)', line)
        ]
        run(train)
        (project / WORK_DIR / 'epoch_1.pth').rename(project / WORK_DIR / 'epoch_12.pth')  # one epoch is enough here
        shutil.copy(project / WORK_DIR / 'epoch_12.pth', project)
        run(test)
        for name in ('adn', 'r50', 'r50_base'):  # the last two stand for nets of one depth
            shutil.copytree(project / WORK_DIR, project / 'work_dirs' / name)
        train, test, *_ = commands('classification')
        run(train)
        work_dir = project / 'work_dirs' / CLASSIFIER
        (work_dir / 'epoch_1.pth').rename(work_dir / 'epoch_150.pth')
        shutil.copy(work_dir / 'epoch_150.pth', project)
        run(test)
        shutil.copytree(work_dir, project / 'work_dirs/resnet50_in1k')
        yield project


def at_ease(text):
    """With budgets that a busy machine keeps too, and times that are not taken often."""
    return re.sub(
        r'(benchmark.py latency (?!.*--rounds).*)', r'\1 --rounds 1', re.sub(r'(budget.ms.)\d+', r'\g<1>99999', text)
    )


def run(command):
    _, script, *arguments = shlex.split(at_ease(command))
    assert load_tool(script.removeprefix('tools/').removesuffix('.py')).main(arguments) == 0, command


EACH = [
    (page, command)
    for page in PAGES
    for command in commands(page)
    if not command.startswith((*NEED_A_CLUSTER, *TAKE_MINUTES, 'make ', 'git clone'))
]


@pytest.mark.parametrize('page, command', EACH, ids=[f'{page}-{command[:60]}' for page, command in EACH])
def test_every_command_runs_as_written(page, command, trained_project):
    if command.startswith('python tools/train.py'):
        return  # the fixture ran it
    shutil.rmtree(trained_project / 'out', ignore_errors=True)  # an export wants a new folder
    run(command)


def test_the_python_runs_as_written(trained_project):
    code = next(block for block in blocks('README', 'python') if 'AnyDepthInferencer' in block)
    done = subprocess.run([sys.executable, '-c', at_ease(code)], cwd=trained_project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    'code, package', zip(blocks('results', 'python'), ('trackers', 'sahi')), ids=['track', 'slice']
)
def test_results_are_used_as_written(code, package, trained_project, monkeypatch):
    pytest.importorskip(package, reason=f'{package} is not installed')
    monkeypatch.chdir(trained_project)
    exec(at_ease(code), {})


@pytest.mark.parametrize('options', re.findall(r'\| `(visualizer\.[^`]+)` \|', PAGES['training']))
def test_the_options_of_a_tracker_are_those_of_its_backend(options):
    pairs = dict(option.split('=', 1) for option in options.split())
    cfg = load_config(str(ROOT / f'configs/{DETECTOR}.py'), pairs)
    (backend,) = cfg.visualizer.vis_backends
    assert VISBACKENDS.build({'save_dir': 'unused', **backend})  # what it needs is imported when it logs


def test_targets_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for page in PAGES.values():
        for target in re.findall(r'(?:`|^)make ([\w-]+)', page, re.MULTILINE):
            assert f'\n{target}:' in makefile, target


def test_own_data_is_a_config_of_a_few_lines(tmp_path):
    init_default_scope('mmdet')
    one_class, own_detector = (block for block in blocks('README', 'python') if 'model = dict(' in block)
    path = tmp_path / 'raccoons.py'
    path.write_text(one_class.replace("'./", f"'{ROOT}/configs/"))
    cfg = Config.fromfile(path)
    assert MODELS.build(cfg.model).roi_head.bbox_head.num_classes == 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == ('raccoon',) and loader.dataset.data_root == 'data/raccoons/'
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'data/raccoons/val.json'
    path.write_text(f"_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n{own_detector}")
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    assert type(MODELS.build(cfg.model).backbone).__name__ == 'AdaptiveDepthResNet'
    assert cfg.custom_hooks[0].type == 'SkipAwareDistillationHook'


def test_every_config_of_the_table_exists():
    names = re.findall(r'`(\w+_coco\.py)`', PAGES['README'])
    assert len(names) == 9 and all((ROOT / 'configs' / name).is_file() for name in names)


@pytest.mark.parametrize('page', PAGES)
def test_links_exist(page):
    folder = ROOT if page == 'README' else ROOT / 'docs'
    for target in re.findall(r'\]\((?!http)([^)#]+)', PAGES[page]):
        assert (folder / target).is_file(), target


def test_the_readme_is_short():
    assert len(PAGES['README'].splitlines()) <= 150
