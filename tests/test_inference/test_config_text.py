import os

import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from tiny import ROOT, tiny_config

from adn_mmdet import UserError
from adn_mmdet.inference import AnyDepthInferencer
from adn_mmdet.inference.config_text import LONGEST, read_config_text

CALL = "__import__('os').system('touch hacked')"
MODEL = "model = dict(type='RetinaNet')\n"
DATA = "test_dataloader = dict(dataset=dict(type='CocoDataset', pipeline=[]))\n"


def model_with(entry):
    return f"model = dict(type='RetinaNet', {entry})\n"


@pytest.fixture
def with_config(tiny_cfg, checkpoint, tmp_path):
    """A checkpoint as mmengine saves it, with a text in the place of the config."""

    def write(text=tiny_cfg.pretty_text, where='message_hub'):
        content = torch.load(checkpoint)
        content['message_hub'] = dict(runtime_info=dict(cfg=text) if where == 'message_hub' else {})
        content['meta'] |= dict(cfg=text) if where == 'meta' else {}
        torch.save(content, tmp_path / 'with_config.pth')
        return tmp_path / 'with_config.pth'

    return write


@pytest.mark.parametrize('where', ['message_hub', 'meta'])
def test_weights_bring_their_config(inferencer, with_config, shapes, where):
    image = str(next((shapes / 'val').iterdir()))
    weights = with_config(where=where)
    (expected,) = DetInferencer(weights=str(weights), device='cpu', show_progress=False)(image)['predictions']
    alone = AnyDepthInferencer(weights=weights, device='cpu', show_progress=False)
    (found,) = alone(image)['predictions']
    assert {**expected, 'skip': 'FFFF', 'point': 'FFFF', 'ms': found['ms']} == found and found['scores']
    assert alone(image, skip='TTTT')['predictions'][0]['skip'] == 'TTTT'
    assert alone.model.dataset_meta['classes'] == inferencer.model.dataset_meta['classes']
    assert alone.input_size == inferencer.input_size


def test_data_is_read_as_it_was_written():
    cfg = Config.fromfile(ROOT / 'configs' / 'mask_rcnn_r50_adn_shapes.py')
    found, wanted = read_config_text(cfg.pretty_text).to_dict(), cfg.to_dict()
    assert found['model'] == wanted['model']
    dataset = wanted['test_dataloader']['dataset']
    kept = {key: dataset[key] for key in ('type', 'metainfo', 'pipeline')}
    assert found['test_dataloader'] == dict(dataset=kept)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (f'model = {CALL}', 'holds Call "__import__'),
        (f'import os; os.system("touch hacked")\n{MODEL}', "holds Import 'import os'"),
        (f'exec("import os")\n{MODEL}', 'holds Expr'),
        (model_with(f'neck={CALL}'), 'holds Call'),
        (model_with(f'neck=[1, ({CALL},)]'), 'holds Call'),
        (model_with(f'neck={{{CALL}: 1}}'), 'holds Call'),
        (model_with(f'**{CALL}'), 'holds Call'),
        (model_with("neck=f'{1}'"), 'holds JoinedStr'),
        (model_with('neck=dict([(1, 2)])'), 'holds Call'),
        (model_with('neck={**dict()}'), 'holds Dict'),
        (model_with('neck=[x for x in (1,)]'), 'holds ListComp'),
        (model_with('neck=(lambda: 1)'), 'holds Lambda'),
        (model_with('neck=model'), "holds Name 'model'"),
        (model_with('neck=1 + 1'), 'holds BinOp'),
        (model_with('neck=-True'), 'holds UnaryOp'),
        ('dict = print', "holds Name 'print'"),
        ('model.x = 1', 'holds Assign'),
        ('a, b = 1, 2', 'holds Assign'),
        ('a = b = 1', 'holds Assign'),
        ("_base_ = 'mmdet::x.py'", 'lacks a model or a test_dataloader'),
        (MODEL, 'lacks a model or a test_dataloader'),
        ('', 'lacks a model'),
        ('model = dict(', r'cannot be read \(SyntaxError\)'),
        ('model = 1\0', 'cannot be read'),
        ('x = ' + '-' * 100_000 + '1', 'cannot be read'),
        ('x = ' + '+'.join('1' * 20_000), 'cannot be read'),
        ('x = ' + '[' * 5000 + ']' * 5000, 'cannot be read'),
        ('#' * (LONGEST + 1), f'has {LONGEST + 1} characters'),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_no_data_is_refused_and_does_not_run(elsewhere, text, message):
    with pytest.raises(UserError, match=message):
        read_config_text(text)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    'entry',
    [
        "neck=dict(type='subprocess.Popen', args=['touch', 'hacked'])",  # which mmengine would import
        "neck=dict(type='mmengine.dump', obj=1, file='hacked')",
        "neck=dict(type='antigravity')",
        "neck=dict(_scope_='antigravity', type='FPN')",
        f'test_cfg=dict(nms=dict(type={CALL!r}))',  # which mmcv would evaluate
        f"neck=dict(type='CameraMotionCompensation', warp_mode={CALL!r})",
        "neck=dict(type='KnowledgeDistillationSingleStageDetector', teacher_config='x.py')",
        'neck=dict(type=[1])',
        'neck=[dict(a=({1: dict(type=1)},))]',
    ],
)
def test_names_that_would_run_something_are_refused(elsewhere, entry):
    with pytest.raises(UserError, match='which is not one that is known and safe'):
        read_config_text(model_with(entry) + DATA)
    assert not list(elsewhere.iterdir())


def test_files_of_a_data_set_are_not_read():
    """A data set reads pickles by itself, as one in a wrapper does although the wrapper is told not to."""
    wrapped = "test_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[dict(ann_file='x.pkl')]))\n"
    assert read_config_text(MODEL + wrapped).test_dataloader.dataset.to_dict() == dict(type='ConcatDataset')


def test_a_crafted_checkpoint(with_config, elsewhere):
    weights = with_config(f'{tiny_config().pretty_text}\nx = {CALL}')
    message = r'with_config.pth holds Call .* give the config that it was trained with, AnyDepthInferencer\(CONFIG, CHE'
    with pytest.raises(UserError, match=message):
        AnyDepthInferencer(weights=weights, device='cpu')
    assert not os.path.exists('hacked')


def test_weights_without_a_config(checkpoint, with_config):
    for weights in (checkpoint, with_config(None), with_config(5)):
        with pytest.raises(UserError, match='holds no config: give the config that it was trained with'):
            AnyDepthInferencer(weights=weights, device='cpu')
