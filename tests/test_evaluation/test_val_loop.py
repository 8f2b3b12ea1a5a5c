import json
import math
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from conftest import DEMO_CONFIG
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.visualization import TensorboardVisBackend
from tiny import build, load_tool, tiny_config

from adn_mmdet import StuckNormsHook, SubNetValLoop, UserError
from adn_mmdet.backbones.adaptive_depth import find_backbone


@pytest.fixture(scope='module')
def net():
    return build(tiny_config()).train()


class DepthEvaluator(Evaluator):
    """Its metrics say at which depth each batch ran."""

    def __init__(self, backbone):
        super().__init__([])
        self.backbone, self.depths = backbone, []

    def process(self, **kwargs):
        self.depths.append(str(self.backbone.resolve_skip()))

    def evaluate(self, size):
        depths, self.depths = self.depths, []
        return {'coco/bbox_mAP': depths.count('TTTT') / size, 'depths': depths}


def loop_of(model, skips=None):
    """A loop over two batches, and its runner."""
    runner = MagicMock(model=model, hooks=[])
    evaluator = DepthEvaluator(find_backbone(model))
    return SubNetValLoop(runner, torch.utils.data.DataLoader([0, 1]), evaluator, skips=skips), runner


def calls(runner):
    return [call.args[0] for call in runner.call_hook.call_args_list if 'iter' not in call.args[0]]


@pytest.fixture
def predicts(net, monkeypatch):
    """The net finds nothing, whatever it is given."""
    monkeypatch.setattr(net, 'val_step', lambda data: [DetDataSample()])


def test_every_code_inside_one_epoch(net, predicts):
    loop, runner = loop_of(net)
    metrics = loop.run()
    assert metrics == {
        'coco/bbox_mAP': 0,
        'depths': ['FFFF', 'FFFF'],
        'FFFF/coco/bbox_mAP': 0,
        'FFFF/depths': ['FFFF', 'FFFF'],
        'TTTT/coco/bbox_mAP': 1,
        'TTTT/depths': ['TTTT', 'TTTT'],
    }
    assert calls(runner) == ['before_val', 'before_val_epoch', 'after_val_epoch', 'after_val']
    assert runner.call_hook.call_args_list[-2].kwargs == dict(metrics=metrics)
    assert not net.training
    loop, _ = loop_of(net, ['ttff', 'TTTT', 'TTFF'])
    assert list(loop.run())[::2] == ['coco/bbox_mAP', 'TTFF/coco/bbox_mAP', 'TTTT/coco/bbox_mAP']
    assert loop.run()['depths'] == ['TTFF', 'TTFF']


def test_nothing_leaks(net, monkeypatch):
    def fail(data):
        assert str(net.backbone.resolve_skip()) == 'TTTT'
        raise RuntimeError('out of memory')

    monkeypatch.setattr(net, 'val_step', fail)
    loop, _ = loop_of(net, ['TTTT'])
    with pytest.raises(RuntimeError, match='out of memory'):
        loop.run()
    assert str(net.backbone.resolve_skip()) == str(net.backbone.skip) == 'FFFF'


def test_inside_a_distributed_wrapper(net, predicts):
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        loop, _ = loop_of(MMDistributedDataParallel(net))
        assert loop.run()['TTTT/depths'] == ['TTTT', 'TTTT']
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize('skips, message', [(['FFFF', 'TTT'], "'TTT' is not a skip code"), ([], 'at least one code')])
def test_codes_are_checked_when_the_loop_is_built(net, skips, message):
    with pytest.raises(UserError, match=message):
        loop_of(net, skips)


def train(tmp_path, tiny_options, **settings):
    """Two iterations of the demo with this loop; the exit code and the log."""
    cfg = Config.fromfile(DEMO_CONFIG)
    cfg.merge_from_dict(dict(val_cfg=dict(type='SubNetValLoop'), **settings))
    cfg.visualizer.name = str(tmp_path)  # one of an earlier run's name would write into that run's folder
    cfg.dump(tmp_path / 'config.py')
    argv = [str(tmp_path / 'config.py'), '--work-dir', str(tmp_path), *tiny_options]
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=1', 'val_dataloader.dataset.indices=2']
    code = load_tool('train').main([*argv, *options, 'default_hooks.logger.log_metric_by_epoch=False'])
    return code, next(tmp_path.glob('2*/*.log')).read_text()


def test_a_training_logs_every_code_and_keeps_the_best(tmp_path, tiny_options):
    hooks = [dict(type='SkipAwareDistillationHook'), dict(type='EMAHook')]
    best = {'default_hooks.checkpoint.save_best': 'TTTT/coco/bbox_mAP'}
    code, text = train(tmp_path, tiny_options, custom_hooks=hooks, **best)
    assert code == 0
    (log,) = tmp_path.glob('2*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    evaluations = [line for line in lines if 'coco/bbox_mAP' in line]
    assert [line['step'] for line in evaluations] == [1, 2]
    for code in ('FFFF', 'TTTT'):
        for metric in ('bbox_mAP', 'segm_mAP_50'):
            assert f'{code}/coco/{metric}' in evaluations[-1]
    assert evaluations[-1]['coco/bbox_mAP'] == evaluations[-1]['FFFF/coco/bbox_mAP']
    assert math.isnan(evaluations[-1]['coco/bbox_mAP_l'])  # exact, where mmdet's CocoMetric says -1
    assert list(tmp_path.glob('best_TTTT_coco_bbox_mAP_iter_*.pth'))
    assert text.count('TTTT/coco/bbox_mAP: ') == 2 and 'skip-aware norms have not moved' not in text


def test_tensorboard(tmp_path):
    events_of = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator').EventAccumulator
    backend = TensorboardVisBackend(save_dir=str(tmp_path))
    backend.add_scalars({'TTTT/coco/bbox_mAP': 0.5}, step=1)
    backend.close()
    events = events_of(str(tmp_path))
    events.Reload()
    assert events.Tags()['scalars'] == ['TTTT/coco/bbox_mAP']


def test_a_bad_code_ends_the_training_before_it_starts(tmp_path, tiny_options, capsys):
    code, _ = train(tmp_path, tiny_options, **{'val_cfg.skips': ['TTT']})
    assert code == 2 and "error: 'TTT' is not a skip code" in capsys.readouterr().err
    assert not list(tmp_path.glob('*.pth'))


def test_a_training_without_the_hook_is_told_so_once(tmp_path, tiny_options):
    code, text = train(tmp_path, tiny_options, custom_hooks=[])
    assert code == 0 and text.count('WARNING - the statistics of 27 of 27 skip-aware norms') == 1


@pytest.mark.parametrize(
    'backbone, cloned, codes, stuck',
    [
        (dict(norm_eval=False), False, ['FFFF', 'TTTT'], 0),
        (dict(norm_eval=False), False, ['FFFF'], 27),
        (dict(norm_eval=False), False, ['FFFF', 'TTFF'], 15),  # stages 3 and 4: 5 blocks of 3 norms
        (dict(norm_eval=False, frozen_stages=1), False, ['FFFF', 'TTTT'], 0),  # frozen as they were trained
        (dict(norm_eval=True), False, ['FFFF', 'TTTT'], 0),
        (dict(norm_eval=False), True, ['FFFF', 'TTTT'], 0),
        (dict(norm_eval=False, frozen_stages=1), True, ['FFFF', 'TTTT'], 6),
        (dict(norm_eval=True), True, ['FFFF', 'TTTT'], 27),
        (dict(norm_eval=True, norm_cfg=dict(type='GN', num_groups=2)), True, ['FFFF', 'TTTT'], 0),
    ],
)
def test_norms_that_should_have_moved(backbone, cloned, codes, stuck):
    net = build(tiny_config(**backbone)).backbone.train()
    if cloned:
        net.load_state_dict({key: value for key, value in net.state_dict().items() if '_skip' not in key})
    runner, hook = MagicMock(model=net), StuckNormsHook()
    hook.before_train(runner)
    with torch.no_grad():
        for code in codes:
            net(torch.randn(2, 3, 64, 64), skip=code)
    hook.before_val(runner)
    said = [call.args[0] for call in runner.logger.warning.call_args_list]
    assert len(said) == bool(stuck) and all(f' {stuck} of 27 ' in text for text in said)
    hook.before_val(runner)
    assert runner.logger.warning.call_count == len(said)
