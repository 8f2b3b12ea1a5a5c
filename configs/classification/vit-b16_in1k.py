# Table 1, ViT-B/16 alone. 300 epochs, 1024 images a step; the authors trained with --amp.
_base_ = ['mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py', '../_base_/classification.py']

model = dict(
    backbone=dict(drop_rate=0.0),
    head=dict(
        hidden_dim=None,
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.11, mode='original', num_classes=1000),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='NumpyToPIL', to_rgb=True),
    dict(type='torchvision/RandAugment', magnitude=9, interpolation='bilinear'),
    dict(type='PILToNumpy', to_bgr=True),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(pipeline=train_pipeline),
    sampler=dict(_delete_=True, type='RepeatAugSampler', num_repeats=3, shuffle=True),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-4, weight_decay=0.2), paramwise_cfg=None, clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.033, by_epoch=True, begin=0, end=30, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=30, end=300),
]
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [_base_.average]
