import copy
import json
import math
import tempfile
from importlib.util import find_spec
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import DEMO_CONFIG
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import autocast
from tiny import DETECTORS, build, load_tool, tiny_config

from adn_mmdet import SkipConfig, StuckNormsHook, SubNetTestLoop, SubNetValLoop, UserError
from adn_mmdet.backbones.adaptive_depth import find_backbone
from adn_mmdet.ops.precision import keep_boxes_exact


@pytest.fixture(scope='module')
def net():
    return build(tiny_config()).train()


class Depths(BaseMetric):
    """Its metrics say at which depth each batch ran."""

    def __init__(self, backbone):
        super().__init__(prefix='coco')
        self.backbone = backbone

    def process(self, data_batch, data_samples):
        assert all('pred_instances' in sample for sample in data_samples)
        self.results.append(str(self.backbone.resolve_skip()))

    def compute_metrics(self, results):
        return {'bbox_mAP': results.count('TTTT') / len(results), 'depths': results}


class Batches(list):
    """A data loader of two batches, each one image."""

    def __init__(self):
        super().__init__(demo_mm_inputs(1, [[3, 64, 64]], num_classes=3) for _ in range(2))
        self.dataset = range(2)


def loop_of(model, skips=None, loop=SubNetValLoop):
    """A loop over two batches, and its runner."""
    runner = MagicMock(model=model, hooks=[], work_dir=tempfile.gettempdir())
    return loop(runner, Batches(), Evaluator([Depths(find_backbone(model))]), skips=skips), runner


def calls(runner, name=''):
    return [call.args[0] for call in runner.call_hook.call_args_list if ('iter' in call.args[0]) == (name == 'iter')]


@pytest.mark.parametrize('loop, mode', [(SubNetValLoop, 'val'), (SubNetTestLoop, 'test')])
def test_every_code_inside_one_epoch(net, loop, mode):
    loop, runner = loop_of(net.train(), ['FFFF', 'TTTT'], loop)
    metrics = loop.run()
    assert metrics == {
        'coco/bbox_mAP': 0,
        'coco/depths': ['FFFF', 'FFFF'],
        'FFFF/coco/bbox_mAP': 0,
        'FFFF/coco/depths': ['FFFF', 'FFFF'],
        'TTTT/coco/bbox_mAP': 1,
        'TTTT/coco/depths': ['TTTT', 'TTTT'],
    }
    around = f'before_{mode}', f'before_{mode}_epoch', f'after_{mode}_epoch', f'after_{mode}'
    assert calls(runner) == [*around[:2], 'after_point', 'after_point', *around[2:]]
    assert calls(runner, 'iter') == [f'before_{mode}_iter', f'after_{mode}_iter'] * 2
    told = [call.kwargs for call in runner.call_hook.call_args_list if call.args[0] == 'after_point']
    assert [(str(call['point']), call['metrics']['coco/bbox_mAP']) for call in told] == [('FFFF', 0), ('TTTT', 1)]
    assert runner.call_hook.call_args_list[-2].kwargs == dict(metrics=metrics)
    assert not net.training and str(net.backbone.resolve_skip()) == 'FFFF'


def points_of(*arguments, **settings):
    return [str(point) for point in loop_of(*arguments, **settings)[0].points]


def test_which_codes(net):
    assert points_of(net) == ['FFFF', 'TTTT']
    assert points_of(net, loop=SubNetTestLoop) == points_of(net, 'all') == [str(code) for code in SkipConfig.all(4)]
    assert points_of(net, ['ttff', 'TTTT', 'TTFF']) == ['TTFF', 'TTTT']
    assert points_of(net, 'ttff,TTTT') == ['TTFF', 'TTTT']


class Keep(BaseMetric):
    """Keeps all predictions."""

    def process(self, data_batch, data_samples):
        self.results.extend(copy.deepcopy(data_samples))

    def compute_metrics(self, results):
        return {'found': results}


@pytest.mark.parametrize(
    'detector, amp', [*((name, False) for name in DETECTORS), ('faster_rcnn', True), ('retinanet', True)]
)
def test_predictions_are_those_of_separate_runs(detector, amp):
    """To the bit, at all 16 depths; every batch is preprocessed once."""
    cfg = tiny_config(detector)
    test_cfg = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    test_cfg.update(score_thr=0.0, max_per_img=5)
    net = build(cfg).eval().to(get_device())
    if amp:
        keep_boxes_exact(net, torch.device(get_device()))
    batches, preprocessed = Batches(), []
    net.data_preprocessor.register_forward_hook(lambda *_: preprocessed.append(1))
    loop = SubNetTestLoop(
        MagicMock(model=net, hooks=[], work_dir=tempfile.gettempdir()), batches, Evaluator([Keep()]), fp16=amp
    )
    metrics = loop.run()
    assert len(preprocessed) == len(batches)
    scores = set()
    for code in SkipConfig.all(4):
        with net.backbone.using_skip(code), torch.no_grad(), autocast(enabled=amp):
            alone = [sample.to_dict() for batch in batches for sample in net.test_step(copy.deepcopy(batch))]
        for one, shared in zip(alone, metrics[f'{code}/found'], strict=True):
            one, shared = one['pred_instances'], shared['pred_instances']
            assert one.keys() == shared.keys() and len(one['scores']) == 5
            assert all(torch.equal(one[name], shared[name]) for name in one)
        scores.add(tuple(one['scores'].tolist()))
    assert len(scores) == 16  # every depth has its own


def test_nothing_leaks(net, monkeypatch):
    def fail(*args, **kwargs):
        assert str(net.backbone.resolve_skip()) == 'TTTT'
        raise RuntimeError('out of memory')

    monkeypatch.setattr(net, '_run_forward', fail)
    loop, _ = loop_of(net, ['TTTT', 'FFFF'])
    with pytest.raises(RuntimeError, match='out of memory'):
        loop.run()
    assert str(net.backbone.resolve_skip()) == str(net.backbone.skip) == 'FFFF'
    assert not any('forward' in vars(stage) for stage in net.backbone.stages)


def test_inside_a_distributed_wrapper(net):
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        loop, _ = loop_of(MMDistributedDataParallel(net.train()))
        assert loop.run()['TTTT/coco/depths'] == ['TTTT', 'TTTT']
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    'skips, message',
    [(['FFFF', 'TTT'], "'TTT' is not a skip code"), ([], 'at least one code'), ('TTT', "'TTT' is not a skip code")],
)
def test_codes_are_checked_when_the_loop_is_built(net, skips, message):
    with pytest.raises(UserError, match=message):
        loop_of(net, skips)


@pytest.mark.parametrize(
    'points, message',
    [
        (dict(proposals='300'), 'RetinaNet has no number of proposals to choose'),
        (dict(sizes=[31]), 'a whole number from 32'),
        (dict(points=['FFFF@64/x']), "'FFFF@64/x' is not an operating point"),
        (dict(sizes=[64]), 'sizes need a test_dataloader that is a config'),
    ],
)
def test_points_are_checked_when_the_loop_is_built(points, message):
    net = build(tiny_config('retinanet'))
    runner = MagicMock(model=net, hooks=[], work_dir=tempfile.gettempdir())
    with pytest.raises(UserError, match=message):
        SubNetTestLoop(runner, Batches(), Evaluator([Depths(net.backbone)]), skips='TTTT', **points)


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


@pytest.fixture(scope='module')
def logged(tmp_path_factory, tiny_options):
    """The work folder of a training that logs to JSON, and to TensorBoard where that is installed; and its log."""
    folder = tmp_path_factory.mktemp('logged')
    hooks = [dict(type='SkipAwareDistillationHook'), dict(type='EMAHook')]
    backends = ['LocalVisBackend'] + ['TensorboardVisBackend'] * bool(find_spec('tensorboard'))
    settings = {
        'default_hooks.checkpoint.save_best': 'TTTT/coco/bbox_mAP',
        'visualizer.vis_backends': [dict(type=backend) for backend in backends],
    }
    code, text = train(folder, tiny_options, custom_hooks=hooks, **settings)
    assert code == 0
    return folder, text


def test_a_training_logs_every_code_and_keeps_the_best(logged):
    tmp_path, text = logged
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


def test_tensorboard_shows_both_nets_and_what_distillation_does_to_the_task(logged):
    module = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='no tensorboard')
    folder, _ = logged
    events = module.EventAccumulator(str(*folder.glob('2*/vis_data')))
    events.Reload()
    (log,) = folder.glob('2*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for name in ('kd.to_task', 'super.loss_mask', 'base.loss_mask', 'FFFF/coco/bbox_mAP', 'TTTT/coco/bbox_mAP'):
        expected = [(line['step'], line[name]) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert np.array(found) == pytest.approx(np.array(expected)) and len(expected) == 2


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
