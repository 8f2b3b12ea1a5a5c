import argparse
import errno
import re

import pytest
import torch
from conftest import DEMO_CONFIG
from mmengine.config import Config, DictAction
from mmengine.registry import HOOKS, METRICS, MODELS, init_default_scope
from mmengine.runner import Runner

from adn_mmdet import UserError
from adn_mmdet.config import load_config
from adn_mmdet.explain import explain


@pytest.fixture(scope='module')
def demo():
    init_default_scope('mmdet')
    return load_config(DEMO_CONFIG)


def said(work):
    with pytest.raises(Exception) as caught:
        work()
    line = explain(caught.value)
    assert '\n' not in line
    return line


def build(cfg, part):
    """Build a part of a config as the runner does, with the config at hand."""
    assert isinstance(cfg, Config)
    if part.endswith('dataloader'):
        return Runner.build_dataloader(cfg[part])
    if part == 'custom_hooks':
        return HOOKS.build(cfg.custom_hooks[0])
    if part == 'default_hooks':
        return HOOKS.build(cfg.default_hooks.logger)
    return METRICS.build(cfg[part]) if part.endswith('evaluator') else MODELS.build(cfg[part])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model.backbone.type': 'AdaptivDepthResNet'}, 'there is no AdaptivDepthResNet .*mean AdaptiveDepthResNet?'),
        ({'model.backbone.deph': 50}, r'model.backbone \(AdaptiveDepthResNet\) takes no deph: did you mean depth?'),
        ({'model.neck.num_out': 5}, r'model.neck \(FPN\) takes no num_out: did you mean num_outs?'),
        ({'model.neck.out_channels': 'x'}, "out_channels should be of type int, but is 'x'"),
        ({'model.rpn_head.loss_cls.type': 'FocalLos'}, 'model.rpn_head.loss_cls .*did you mean FocalLoss?'),
        (
            {'model.backbone.out_indices': (0, 9)},
            r'model.backbone .*AssertionError: .*resnet.py:\d+; ADN_DEBUG=1 shows',
        ),
        ({'train_dataloader.batchsize': 4}, 'train_dataloader takes no batchsize: did you mean batch_size?'),
        ({'train_dataloader.dataset.type': 'CocoDatset'}, 'train_dataloader.dataset .*did you mean CocoDataset?'),
        ({'train_dataloader.sampler.type': 'InfinitSampler'}, 'did you mean InfiniteSampler?'),
        ({'default_hooks.logger.intervall': 5}, r'logger \(LoggerHook\) takes no intervall: did you mean interval?'),
        ({'default_hooks.logger.interval': 'half'}, "logger .*: interval should be of type int, but is 'half'"),
        ({'custom_hooks.0.alpa': 0.5}, 'has no setting .alpa.; did you mean .alpha'),
        ({'custom_hooks.0.alpha': 'half'}, "alpha should be a finite number, but got 'half'"),
        ({'val_evaluator.metric': 'bboxx'}, r'val_evaluator \(CocoMetric\): .*but got bboxx'),
    ],
)
def test_what_cannot_be_built(demo, shapes, changes, message):
    cfg = Config(demo.to_dict())
    cfg.train_dataloader.dataset.data_root = f'{shapes}/'
    cfg.merge_from_dict(changes)
    (name,) = changes
    assert re.search(message, line := said(lambda: build(cfg, name.partition('.')[0]))), line


def test_a_type_that_mmengine_takes_for_none(demo):
    cfg = Config(demo.to_dict())
    cfg.optim_wrapper.optimizer.type = 'AdmW'

    def fail(cfg):
        raise TypeError('None is not a callable object')

    line = said(lambda: fail(cfg))
    assert 'nobody knows: optim_wrapper.optimizer.type AdmW: did you mean AdamW?' in line


def raised(error):
    def work():
        raise error

    return said(work)


def test_errors_of_the_system():
    assert raised(OSError(errno.ENOSPC, 'No space left on device', 'a.pth')) == (
        'cannot write a.pth (No space left on device): make room, then run it again'
    )
    assert raised(PermissionError(errno.EACCES, 'Permission denied', 'x')).startswith('cannot read or write x (Perm')
    for error in (
        MemoryError(),
        torch.cuda.OutOfMemoryError('CUDA out of memory'),
        RuntimeError("can't allocate memory"),
    ):
        assert 'take a smaller batch_size' in raised(error)
    assert raised(UserError('as it is')) == 'as it is'
    worker = (
        'Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\nKeyError: 5'
    )
    assert raised(RuntimeError(worker)).startswith('RuntimeError: KeyError: 5 (')
    assert len(raised(RuntimeError('x' * 10000))) < 500


@pytest.mark.parametrize('option', ['foo', 'a=[1,(2]'])
def test_options_that_are_no_pairs(option):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    line = said(lambda: parser.parse_args(['--cfg-options', 'b=1', option]))
    assert line == f'--cfg-options {option}: write KEY=VALUE, with brackets in pairs'
