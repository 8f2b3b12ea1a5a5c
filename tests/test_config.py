import os

import pytest
from mmengine.config import ConfigDict
from tiny import ROOT

from adn_mmdet import UserError
from adn_mmdet.config import load_config, require_data, require_output, require_weights, require_writable

CONFIG = str(ROOT / 'configs' / 'mask_rcnn_r50_adn_1x_coco.py')


def test_mistyped_config_gets_the_nearest_names():
    with pytest.raises(UserError, match='did you mean .*mask_rcnn_r50_adn_1x_coco.py'):
        load_config(CONFIG.replace('adn_1x', 'and_1x'))
    with pytest.raises(UserError, match='there is no config nowhere/x.py'):
        load_config('nowhere/x.py')


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
