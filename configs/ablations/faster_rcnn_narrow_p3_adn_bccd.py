# A setting of docs/ablations.md in which more hangs on the backbone: half as wide as faster_rcnn_narrow_adn_bccd.py, a
# pyramid of 16 channels from stage 2 on, a head of 64 and fewer RoIs; 20 epochs, images flipped either way.
_base_ = './faster_rcnn_narrow_adn_bccd.py'

width, channels, num_epochs = 2, 16, 20
model = dict(
    backbone=dict(base_channels=width),
    neck=dict(
        in_channels=[4 * width, 8 * width, 16 * width, 32 * width],
        out_channels=channels,
        start_level=1,
        num_outs=4,
        norm_cfg=dict(num_groups=4),
    ),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[3], strides=[8, 16, 32, 64]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=[8, 16, 32], finest_scale=28),
        bbox_head=dict(in_channels=channels, fc_out_channels=64),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=100, max_per_img=64), rcnn=dict(sampler=dict(num=32))),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(256, 192), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
test_evaluator = dict(classwise=True)

train_cfg = dict(max_epochs=num_epochs, val_interval=num_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=num_epochs, convert_to_iter_based=True),
]
