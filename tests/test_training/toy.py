"""A model, a data set and a config that train in a fraction of a second, and draw random numbers wherever one can."""

import itertools
import os
import random
import signal

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS

NUM_IMAGES, BATCH_SIZE, NUM_EPOCHS = 12, 2, 2
ITERS_PER_EPOCH = NUM_IMAGES // BATCH_SIZE
names = itertools.count()


@MODELS.register_module()
class ToyModel(BaseModel):
    """``weight`` MB of weights make a save take its time; ``unused`` adds some that no loss depends on."""

    def __init__(self, weight=0, unused=False):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        self.ballast = torch.nn.Parameter(torch.zeros(weight << 18))
        self.unused = torch.nn.Linear(2, 2) if unused else None

    def forward(self, inputs, data_samples=None, mode='loss'):
        features = torch.nn.functional.dropout(torch.stack(inputs), training=self.training)
        features = self.layers(features + 0.01 * torch.rand_like(features) * random.random())
        if mode != 'loss':
            return data_samples
        return dict(loss_square=features.square().mean(), loss_rest=self.ballast.sum() + features.abs().mean())


@DATASETS.register_module()
class ToyImages(torch.utils.data.Dataset):
    metainfo = dict(classes=('toy',))

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        sample = DetDataSample(metainfo=dict(img_path=f'{index}.jpg'))
        return dict(inputs=torch.full((4,), index / NUM_IMAGES) + np.random.rand() * torch.rand(4), data_samples=sample)


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Its value grows from one validation to the next."""

    def process(self, data_batch, data_samples):
        self.results += [torch.rand(1).item() for _ in data_samples]

    def compute_metrics(self, results):
        self.count = getattr(self, 'count', 0) + 1
        return dict(score=self.count)


ACTIONS = {}  # a config holds no functions


@HOOKS.register_module()
class AtIteration(Hook):
    """Does something before one iteration of the training, or before the first of a validation (None)."""

    priority = 'VERY_HIGH'

    def __init__(self, action, iteration):
        self.action, self.iteration = ACTIONS[action], iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            self.action(runner, data_batch)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.iteration is None and batch_idx == 0:
            self.action(runner, data_batch)


def at(iteration, action):
    """An AtIteration's config."""
    ACTIONS[len(ACTIONS)] = action
    return dict(type='AtIteration', iteration=iteration, action=len(ACTIONS) - 1)


def sigterm(runner, data_batch):
    os.kill(os.getpid(), signal.SIGTERM)


class ToyConfig(Config):
    """Not formatted as Python code: that takes longer than to train."""

    pretty_text = ''


def toy_config(work_dir, by_epoch=True, hooks=(), weight=0, **checkpoint):
    """Two epochs of six iterations, saved and validated twice."""
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    loader = dict(batch_size=BATCH_SIZE, num_workers=0, dataset=dict(type='ToyImages'))
    epochs = dict(type='EpochBasedTrainLoop', max_epochs=NUM_EPOCHS, val_interval=1)
    iters = dict(type='IterBasedTrainLoop', max_iters=NUM_EPOCHS * ITERS_PER_EPOCH, val_interval=ITERS_PER_EPOCH)
    interval = 1 if by_epoch else ITERS_PER_EPOCH
    val_loader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False))
    return ToyConfig(
        dict(
            default_scope='mmdet',
            work_dir=str(work_dir),
            experiment_name=f'toy{next(names)}',  # runs of the same second would share mmengine's message hub
            model=dict(type='ToyModel', weight=weight),
            train_dataloader=dict(loader, sampler=dict(type=sampler, shuffle=True)),
            val_dataloader=val_loader,
            val_evaluator=dict(type='ToyMetric'),
            train_cfg=epochs if by_epoch else iters,
            val_cfg=dict(type='ValLoop'),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=8),
                dict(type='MultiStepLR', by_epoch=by_epoch, milestones=[1 if by_epoch else 9], gamma=0.1),
            ],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=interval, **checkpoint),
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=[dict(type='EMAHook', momentum=0.1), *hooks],
            log_level='WARNING',
        )
    )


def toy_train(work_dir, resume=None, **options):
    from adn_mmdet import train

    return train(toy_config(work_dir, **options), resume)


def same(first, second):
    """Whether two trees of tensors and numbers are equal to the bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def same_training(first, second):
    """Whether two checkpoints hold the same state of a training."""
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'exact_resume')
    return [part for part in parts if not same(first[part], second[part])] == []


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ToyPairConstructor:
    """An OptimWrapperDict: one optimiser of the first layer, one of the last."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.optimizer = optim_wrapper_cfg['optimizer']

    def __call__(self, model):
        parts = dict(first=model.layers[0], last=model.layers[2])
        return OptimWrapperDict(
            **{
                name: OptimWrapper(OPTIMIZERS.build({**self.optimizer, 'params': part.parameters()}))
                for name, part in parts.items()
            }
        )


@MODELS.register_module()
class ToyPair(ToyModel):
    """Trains with it."""

    def train_step(self, data, optim_wrapper):
        loss, log = self.parse_losses(self(**self.data_preprocessor(data, True)))
        for wrapper in optim_wrapper.values():
            wrapper.zero_grad()
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return log


def toy_pair_config(work_dir, **options):
    cfg = toy_config(work_dir, **options)
    cfg.model.type, cfg.param_scheduler = 'ToyPair', None
    cfg.optim_wrapper = dict(constructor='ToyPairConstructor', optimizer=dict(type='AdamW', lr=0.01))
    return cfg
