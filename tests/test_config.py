import os

import pytest
from mmengine.config import ConfigDict
from tiny import ROOT

from adn_mmdet import UserError
from adn_mmdet.config import (
    load_config,
    require_data,
    require_output,
    require_sections,
    require_weights,
    require_writable,
)

CONFIG = str(ROOT / 'configs' / 'mask_rcnn_r50_adn_1x_coco.py')


def test_mistyped_config_gets_the_nearest_names():
    with pytest.raises(UserError, match='did you mean .*mask_rcnn_r50_adn_1x_coco.py'):
        load_config(CONFIG.replace('adn_1x', 'and_1x'))
    with pytest.raises(UserError, match='there is no config nowhere/x.py'):
        load_config('nowhere/x.py')


BASE = "_base_ = './base.py'\n"
SMALL = (
    "model = dict(type='FasterRCNN')\ntrain_dataloader = dict(batch_size=2, dataset=dict(type='CocoDataset'))\n"
    "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\ntrain_cfg = dict(max_iters=4)\n"
    "test_evaluator = [dict(type='CocoMetric')]\n"
)
UNREADABLE = {
    'model is missing in .*x.py': '',
    'x.py cannot be read: SyntaxError: .*line 2': f'{BASE}model = dict(',
    'there is no .*xx.py, which is its _base_: did you mean x.py': "_base_ = './xx.py'",
    'its _base_ files name each other in a circle': "_base_ = './x.py'",
    'custom_imports: .*adn_mmdett': f"{BASE}custom_imports = dict(imports=['adn_mmdett'])",
    r"x.py, line 2 cannot be read: NameError: name 'foo'": f'{BASE}a = foo',
    r'x.py, line 2: there is no modle: did you mean model\?': f'{BASE}a = _base_.modle',
    r'nothing reads train_dataloder .*: did you mean train_dataloader\?': f'{BASE}train_dataloder = dict(batch_size=4)',
    'model is None in': f'{BASE}model = None',
    'optim_wrapper.optimizer.lr is nan': f"{BASE}optim_wrapper = dict(optimizer=dict(lr=float('nan')))",
    "lr is 'high': give a number of at least 0": f"{BASE}optim_wrapper = dict(optimizer=dict(lr='high'))",
    'batch_size is 0: give a whole number of at least 1': f'{BASE}train_dataloader = dict(batch_size=0)',
    'max_iters is 0: give a whole number of at least 1': f'{BASE}train_cfg = dict(max_iters=0)',
    'val_interval is 0': f'{BASE}train_cfg = dict(val_interval=0)',
    'is no text in UTF-8': b'\xff\xfe\x00\x01',
    'x.py is no text in UTF-8': b'a = 1\x00',
}


@pytest.mark.parametrize('message', UNREADABLE)
def test_configs_that_cannot_be_read(message, tmp_path):
    (tmp_path / 'base.py').write_text(SMALL)
    content = UNREADABLE[message]
    (tmp_path / 'x.py').write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        load_config(str(tmp_path / 'x.py'))
    assert '\n' not in str(error.value)


def test_other_kinds_of_files(tmp_path):
    with pytest.raises(UserError, match='is a folder, no config'):
        load_config(str(tmp_path))
    for name, content in (('a.txt', BASE), ('a.json', '{'), ('a.yaml', 'model: [')):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f'{name} cannot be read'):
            load_config(str(tmp_path / name))


def test_yaml_runs_no_code(tmp_path):
    (tmp_path / 'a.yaml').write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    (tmp_path / 'b.py').write_text("_base_ = './a.yaml'")
    for name in ('a.yaml', 'b.py'):
        with pytest.raises(UserError, match='a.yaml cannot be read: ConstructorError'):
            load_config(str(tmp_path / name))
    assert not (tmp_path / 'made').exists()
    (tmp_path / 'a.yaml').write_text('model: {type: FasterRCNN}')
    assert load_config(str(tmp_path / 'a.yaml')).model.type == 'FasterRCNN'


def test_sections_that_a_run_needs(tmp_path):
    (tmp_path / 'x.py').write_text(f'{SMALL}optim_wrapper = None')
    cfg = load_config(str(tmp_path / 'x.py'))
    require_sections(cfg, 'train_dataloader', 'test_evaluator')
    with pytest.raises(UserError, match='optim_wrapper is None in .*x.py'):
        require_sections(cfg, 'optim_wrapper')
    with pytest.raises(UserError, match='train_dataloaders is missing in .*: did you mean train_dataloader'):
        require_sections(cfg, 'train_dataloaders')


def test_work_dir_and_options(tmp_path, elsewhere):
    cfg = load_config(CONFIG, {'model.backbone.skip': 'TFFF'}, str(tmp_path / 'out'))
    assert cfg.work_dir == str(tmp_path / 'out') and cfg.model.backbone.skip == 'TFFF'
    assert load_config(CONFIG).work_dir == os.path.join('work_dirs', 'mask_rcnn_r50_adn_1x_coco')


def test_work_dir_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write to .*file/out.*another folder'):
        require_writable(tmp_path / 'file' / 'out')


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('kept')
    require_output(tmp_path / 'new' / 'out.json')
    require_output(tmp_path / 'file')
    assert (tmp_path / 'file').read_text() == 'kept' and not list((tmp_path / 'new').iterdir())
    with pytest.raises(UserError, match='new is a folder: give the name of a file'):
        require_output(tmp_path / 'new')
    with pytest.raises(UserError, match='cannot write to .*file .*another folder'):
        require_output(tmp_path / 'file' / 'out.json')
    with pytest.raises(UserError, match='cannot write .*File name too long.: give another name'):
        require_output(tmp_path / ('x' * 250))


@pytest.mark.parametrize(
    'name, message',
    [
        ('mask_rcnn_r50_adn_1x_coco', 'resnet50_adn_imagenet.pth.*authors.*\n.*adn_tv_1x_coco.py'),
        ('mask_rcnn_r50_base_1x_coco', 'resnet50_base_imagenet.pth.*\n.*torchvision://resnet50'),
    ],
)
def test_missing_weights_say_how_to_get_them(name, message, elsewhere):
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'))
    with pytest.raises(UserError, match=message):
        require_weights(cfg)
    os.makedirs('pretrained')
    for file in ('resnet50_adn_imagenet.pth', 'resnet50_base_imagenet.pth'):
        open(f'pretrained/{file}', 'w').close()
    require_weights(cfg)
    cfg.load_from = 'gone.pth'
    with pytest.raises(UserError, match='there are no weights gone.pth: check the path'):
        require_weights(cfg)


def test_urls_are_left_to_the_loader():
    require_data(ConfigDict(dataset=dict(data_root='s3://bucket/coco/', ann_file='a.json')))
    require_weights(load_config(str(ROOT / 'configs' / 'mask_rcnn_r50_adn_tv_1x_coco.py')))


def test_data_that_is_not_there(tmp_path):
    root = tmp_path / 'coco'
    dataset = dict(data_root=str(root), ann_file='a.json', data_prefix=dict(img='images/'))
    loader = ConfigDict(dataset=dict(type='RepeatDataset', dataset=dataset))
    with pytest.raises(UserError, match='there is no annotation file .*coco.*put COCO there.*make demo'):
        require_data(loader)
    root.mkdir()
    (root / 'a.json').write_text('{}')
    with pytest.raises(UserError, match='there is no image folder .*images'):
        require_data(loader)
    (root / 'images').mkdir()
    require_data(loader)
