import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from test_tools import fails
from tiny import batch, build, load_tool, tiny_config

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.checkpoints import load_from_local
from adn_mmdet.checkpoints.norms import norms_at
from adn_mmdet.cost.macs import count_costs
from adn_mmdet.export import sub_net as export
from adn_mmdet.export.stock_config import own_types
from adn_mmdet.export.sub_net import export_sub_net, plain_detector
from adn_mmdet.files import _host, file_sha256

CODES = SkipConfig.all(4)
KEYS = ('bboxes', 'scores', 'labels')
# Runs where adn_mmdet cannot be imported, and from another folder than that of the exported files.
WITHOUT_PACKAGE = """
import mmcv._ext, pickle, runpy, sys, torch  # the operators here are this package's; elsewhere mmcv has its own
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'adn_mmdet':
            raise ImportError('adn_mmdet is not installed here')
sys.meta_path.insert(0, Blocker())
torch.set_num_threads(1)
import mmdet
from mmdet.apis import DetInferencer, inference_detector, init_detector
config, weights, image, test_script, out = sys.argv[1:]
model = init_detector(config, weights, device='cpu')
instances = inference_detector(model, image).pred_instances
found = DetInferencer(weights=weights, device='cpu', show_progress=False)(image)['predictions'][0]
parameters = sum(parameter.numel() for parameter in model.parameters())
kept = [type(model.backbone).__module__, model.dataset_meta['classes'], parameters, found['scores']]
with open(out, 'wb') as file:
    pickle.dump([instances.bboxes, instances.scores, instances.labels, *kept], file)
sys.argv = [test_script, config, weights, '--work-dir', 'tested', '--out', 'tested.pkl']
runpy.run_path(test_script, run_name='__main__')
assert type(init_detector('tested/' + config.rpartition('/')[2], weights, device='cpu').backbone) is mmdet.models.ResNet
assert 'adn_mmdet' not in sys.modules
"""


def predictions(detector):
    torch.manual_seed(0)
    return [
        value
        for sample in detector.forward(**batch(detector), mode='predict')
        for _, value in sorted(sample.pred_instances.items())
    ]


def assert_equal(values, others):
    for value, other in zip(values, others, strict=True):
        assert torch.equal(value, other)


@pytest.fixture(scope='module')
def mask_rcnn():
    cfg = tiny_config('mask_rcnn')
    cfg.model.test_cfg.rpn.max_per_img = cfg.model.test_cfg.rcnn.max_per_img = 20
    detector = build(cfg).eval()
    return cfg, detector, dict(zip(CODES, count_costs(detector, CODES, (64, 64))))


@torch.no_grad()
@pytest.mark.parametrize('code', CODES, ids=str)
def test_every_code_is_exported_to_the_bit_and_to_the_parameter(mask_rcnn, code):
    cfg, detector, costs = mask_rcnn
    _, plain = plain_detector(cfg, detector, code)
    with detector.backbone.using_skip(code):
        assert_equal(predictions(plain), predictions(detector))
        images = torch.randn(2, 3, 64, 96)
        assert_equal(plain.extract_feat(images), detector.extract_feat(images))
    num_parameters = sum(parameter.numel() for parameter in plain.parameters())
    assert num_parameters == round(costs[code].params_active_m * 1e6)


VARIANTS = {
    'faster_rcnn': {},
    'retinanet': {},
    'depth=101': dict(depth=101),
    'avg_down': dict(avg_down=True),
    'deep_stem': dict(deep_stem=True),
    'caffe': dict(style='caffe'),
    'one set of norms': dict(skip_aware_norm=False),
    'dcn': dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True)),
    'plugins': dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 4), position='after_conv3')]),
}


@torch.no_grad()
@pytest.mark.parametrize('name', VARIANTS)
def test_other_detectors_and_backbones(name):
    cfg = tiny_config('retinanet' if name == 'retinanet' else 'faster_rcnn', **VARIANTS[name])
    detector = build(cfg).eval()
    detector.backbone.set_skip('TFTF')
    _, plain = plain_detector(cfg, detector, detector.backbone.skip)
    images = torch.randn(2, 3, 64, 96)
    assert_equal(plain.extract_feat(images), detector.extract_feat(images))


def test_runs_where_the_package_is_not_installed(trained, shapes, tmp_path):
    """From the config that a training has dumped, with all hooks and loops of this package in it."""
    checkpoint, config = trained / 'iter_4.pth', trained / 'mask_rcnn_r50_adn_shapes.py'
    image = sorted((shapes / 'val').iterdir())[0]
    files = export_sub_net(Config.fromfile(config), checkpoint, 'TTFT', tmp_path / 'out')
    assert [path.name for path in files] == [
        'mask_rcnn_r50_adn_shapes_TTFT.pth',
        'hubconf.py',
        'mask_rcnn_r50_adn_shapes_TTFT.py',
    ]
    test_script = Path(sys.modules['mmdet'].__file__).parent / '.mim' / 'tools' / 'test.py'
    argv = [str(files[-1]), str(files[0]), str(image), str(test_script), 'found.pkl']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    subprocess.run([sys.executable, '-c', WITHOUT_PACKAGE, *argv], check=True, cwd=tmp_path, env=environment)
    model = init_detector(str(config), str(checkpoint), device='cpu')
    model.backbone.set_skip('TTFT')
    instances = inference_detector(model, str(image)).pred_instances
    bboxes, scores, labels, module, classes, num_parameters, found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert len(scores) and module == 'mmdet.models.backbones.resnet' and found == scores.tolist()
    assert_equal([bboxes, scores, labels], [instances[key] for key in KEYS])
    assert tuple(classes) == ('circle', 'rectangle', 'triangle')
    assert num_parameters == round(count_costs(model, [SkipConfig.parse('TTFT')], (64, 64))[0].params_active_m * 1e6)
    for found in pickle.loads((tmp_path / 'tested.pkl').read_bytes()):  # of mmdet's own test.py
        instances = inference_detector(model, found['img_path']).pred_instances
        assert_equal([found['pred_instances'][key] for key in KEYS], [instances[key] for key in KEYS])


def test_the_super_net_is_a_plain_resnet_whose_config_names_nothing_of_this_package(trained, tmp_path):
    config = trained / 'mask_rcnn_r50_adn_shapes.py'
    before = config.read_text()
    files = export_sub_net(Config.fromfile(config), trained / 'iter_4.pth', 'ffff', tmp_path / 'deep' / 'out')
    assert [path.suffix for path in files] == ['.pth', '.py'] and before == config.read_text()
    text = files[1].read_text()
    assert not {name for name in ('adn_mmdet', *own_types()) if name in text.replace(str(tmp_path.parent), '')}
    cfg = Config.fromfile(files[1])
    assert cfg.model.backbone.type == 'mmdet.ResNet' and cfg.model.backbone.depth == 50
    assert cfg.load_from == str(files[0]) and not cfg.resume and 'work_dir' not in cfg and 'custom_imports' not in cfg
    assert cfg.default_hooks.keys() == {
        'timer',
        'logger',
        'param_scheduler',
        'checkpoint',
        'sampler_seed',
        'visualization',
    }
    assert (
        cfg.default_hooks.checkpoint.type == 'CheckpointHook' and cfg.val_cfg.type == 'ValLoop' and not cfg.custom_hooks
    )
    assert cfg.test_evaluator.type == 'CocoMetric' and cfg.test_dataloader == Config.fromfile(config).test_dataloader
    checkpoint = torch.load(files[0], weights_only=True)  # as stock mmengine reads it
    MODELS.build(cfg.model).load_state_dict(checkpoint['state_dict'])
    assert checkpoint['meta']['dataset_meta'] == load_from_local(trained / 'iter_4.pth')['meta']['dataset_meta']


def test_imports_of_others_and_weights_of_the_architecture(tmp_path):
    cfg = tiny_config('faster_rcnn', init_cfg=dict(type='Pretrained', checkpoint='none.pth'))
    cfg.custom_imports.imports = ['adn_mmdet', 'json']
    plain_cfg, _ = plain_detector(cfg, build(cfg), CODES[-1])
    assert plain_cfg.custom_imports.imports == ['json'] and 'init_cfg' not in plain_cfg.model.backbone
    assert not [key for key in plain_cfg if 'adn' in key]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    cfg = tiny_config()
    torch.save(build(cfg).state_dict(), folder / 'weights.pth')
    cfg.dump(folder / 'tiny.py')
    return folder


@torch.no_grad()
def test_recalibrated_norms_are_baked_in_and_the_folder_may_move(saved):
    cfg, checkpoint, norms = Config.fromfile(saved / 'tiny.py'), saved / 'weights.pth', saved / 'norms.pth'
    detector = build(cfg).eval()
    detector.backbone.set_skip('TTTF')
    content = {'skip': 'TTTF', 'checkpoint_sha256': file_sha256(checkpoint), 'num_images': 1}
    statistics = {
        f'{name}.{kind}': torch.rand_like(getattr(norm, kind))
        for name, norm in norms_at(detector, 'TTTF').items()
        for kind in ('running_mean', 'running_var')
    }
    torch.save({**content, 'statistics': statistics}, norms)
    files = export_sub_net(cfg, checkpoint, 'TTTF', saved / 'out', norms=norms)
    moved = files[0].parent.rename(saved / 'moved')
    plain = build(Config.fromfile(moved / files[-1].name))
    exported = torch.load(moved / files[0].name)
    plain.load_state_dict(exported['state_dict'])
    for key, value in statistics.items():
        detector.state_dict()[key].copy_(value)
    assert_equal(predictions(plain.eval()), predictions(detector))
    assert exported['meta']['dataset_meta']['classes'][:2] == ('person', 'bicycle')  # bare weights: those of the config
    with pytest.raises(UserError, match='is for TTTF alone'):
        export_sub_net(cfg, checkpoint, 'TTTT', saved / 'other', norms=norms)


def change(path, **changed):
    torch.save({**torch.load(path), **changed}, path)


SPOILT = {
    'no checkpoint that torch.save wrote': lambda path: path.write_text('<html>404</html>'),
    'could run code': lambda path: torch.save({'a': os.system}, path),
    'NaN': lambda path: change(path, **{'neck.fpn_convs.0.conv.bias': torch.full((16,), torch.nan)}),
    'mandatory blocks a stage': lambda path: change(path, **{'backbone.layer3.3.bn1_skip.weight': torch.zeros(64)}),
    'untrained': lambda path: torch.save({k: v for k, v in torch.load(path).items() if '_skip.' not in k}, path),
}


@pytest.fixture(scope='module')
def main():
    return load_tool('export_sub_net').main


@pytest.mark.parametrize('message', SPOILT)
def test_weights_that_cannot_be_exported(main, saved, capsys, message):
    SPOILT[message](saved / 'weights.pth')
    argv = [str(saved / 'tiny.py'), str(saved / 'weights.pth'), str(saved / 'out'), '--skip', 'TTTT']
    fails(main, argv, capsys, message)
    assert not (saved / 'out').exists()


OPTIONS = {
    "'TTT' is not a skip code": ['--skip', 'TTT'],
    "'FFFF,TTTT' is not a skip code": ['--skip', 'FFFF,TTTT'],
    "'all' is not a skip code": ['--skip', 'all'],
    'disagree': ['--cfg-options', 'model.backbone.skip=FFFF'],
    'is not empty': ['full'],
    'cannot write to': ['weights.pth/out'],
    'File name too long': ['x' * 240],
    'should have one adaptive-depth backbone, but has 0 (found ResNet)': [
        '--cfg-options',
        'model.backbone._delete_=True',
        'model.backbone.type=ResNet',
        'model.backbone.depth=50',
    ],
    'this backbone has no batch norm': [
        '--fuse',
        '--cfg-options',
        'model.backbone.norm_cfg.type=GN',
        'model.backbone.norm_cfg.num_groups=4',
    ],
}


@pytest.mark.parametrize('message', OPTIONS)
def test_command_lines_that_cannot_be_done(main, saved, capsys, message):
    options = OPTIONS[message]
    out = 'out' if options[0].startswith('--') else options[0]
    (saved / 'full').mkdir()
    (saved / 'full' / 'notes.txt').touch()
    before = sorted(saved.rglob('*'))
    argv = [str(saved / 'tiny.py'), str(saved / 'weights.pth'), str(saved / out), '--skip', 'TTTT']
    if 'GN' in str(options):
        torch.save(build(tiny_config(norm_cfg=dict(type='GN', num_groups=4))).state_dict(), saved / 'weights.pth')
    fails(main, argv + options * options[0].startswith('--'), capsys, message)
    assert sorted(saved.rglob('*')) == before


def test_a_full_disk_leaves_no_part(main, saved, capsys, monkeypatch):
    def write(path, content, write=export.write_atomically):
        if path.suffix == '.py':
            raise OSError(28, 'No space left on device')
        write(path, content)

    monkeypatch.setattr(export, 'write_atomically', write)
    argv = [str(saved / 'tiny.py'), str(saved / 'weights.pth'), str(saved / 'out'), '--skip', 'TTTT']
    before = sorted(saved.iterdir())
    fails(main, argv, capsys, 'No space left on device')
    assert sorted(saved.iterdir()) == before


def test_what_a_killed_export_left_is_removed(saved):
    left = saved / f'out.{_host()}-999999999-0123.partial'
    left.mkdir()
    (left / 'half.pth').write_bytes(b'half')
    (saved / 'out').mkdir()
    files = export_sub_net(Config.fromfile(saved / 'tiny.py'), saved / 'weights.pth', 'TTTT', saved / 'out')
    assert sorted((saved / 'out').iterdir()) == sorted(files)
    assert sorted(path.name for path in saved.iterdir()) == ['out', 'tiny.py', 'weights.pth']


ODD = """it's "odd" \\ {{ fileDirname }} \\n é"""


def test_a_config_is_read_as_it_was_whatever_its_letters(saved):
    cfg = Config.fromfile(saved / 'tiny.py')
    cfg.test_dataloader.dataset.update(metainfo=dict(classes=(ODD, 'b')), data_root=ODD)
    cfg.custom = {ODD: [ODD, float('inf'), None], 'kind': Path, 'more': ({'a': (1,)},)}
    out = saved / """it's an "odd" \\ folder"""
    files = export_sub_net(cfg, saved / 'weights.pth', 'TTTT', out)
    read = Config.fromfile(files[-1], use_predefined_variables=False)
    assert read.test_dataloader.dataset.metainfo.classes == (ODD, 'b') and read.test_dataloader.dataset.data_root == ODD
    assert read.custom == {ODD: [ODD, float('inf'), None], 'kind': 'pathlib.Path', 'more': ({'a': (1,)},)}
    assert read.load_from == str(files[0]) and read.model.backbone.repo_or_dir == str(out)
    moved = out.rename(saved / "moved'")
    read = Config.fromfile(moved / files[-1].name)
    assert read.load_from == str(moved / files[0].name)
    assert build(read).backbone.arch_settings
    text = torch.load(moved / files[0].name)['meta']['cfg']
    assert Config.fromstring(text, '.py').model.backbone.repo_or_dir == str(out)
