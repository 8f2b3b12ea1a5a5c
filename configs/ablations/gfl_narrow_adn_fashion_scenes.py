# GFL at an eighth of its width (backbone, pyramid and towers), from scratch, on scenes of
# tools/benchmarks/fashion_scenes.py at 128×128; a batch is resized to one of four sizes, so that a smaller input is a
# fair rival of a smaller depth. tools/benchmarks/fashion_detection.py trains it.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py', '../_base_/adn.py']

data_root = 'data/fashion_scenes/'
metainfo = dict(
    classes=(
        *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
        *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
    )
)
width, channels, size = 8, 32, (128, 128)
model = dict(
    data_preprocessor=dict(
        pad_size_divisor=16,
        batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(80, 128), interval=1, size_divisor=16)],
    ),
    backbone=dict(
        type='AdaptiveDepthResNet',
        skip='FFFF',
        base_channels=width,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[4 * width, 8 * width, 16 * width, 32 * width],
        out_channels=channels,
        add_extra_convs=False,
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=8),
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=channels,
        feat_channels=channels,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        anchor_generator=dict(octave_base_scale=4, strides=[8, 16, 32]),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
loader = dict(num_workers=0, persistent_workers=False, batch_size=8)
dataset = dict(data_root=data_root, metainfo=metainfo)
train = dict(
    ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'), pipeline=train_pipeline, **dataset
)
test = dict(
    ann_file='annotations/instances_test.json', data_prefix=dict(img='test/'), pipeline=test_pipeline, **dataset
)
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfiniteSampler'), batch_sampler=None, dataset=train, **loader
)
val_dataloader = dict(dataset=test, **loader)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_test.json')
test_evaluator = val_evaluator

max_iters = 1000
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100, eta_min=1e-5),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
