# A setting of docs/ablations.md: ResNet-50's blocks at a thirty-second of its width, from scratch, on people of COCO.
_base_ = '../mask_rcnn_r50_adn_tv_1x_coco.py'

metainfo = dict(classes=('person',))
width, channels, num_epochs = 2, 16, 40
model = dict(
    backbone=dict(base_channels=width, init_cfg=None),
    neck=dict(
        in_channels=[4 * width, 8 * width, 16 * width, 32 * width],
        out_channels=channels,
        norm_cfg=dict(type='GN', num_groups=4),
    ),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=channels, fc_out_channels=64, num_classes=1),
        mask_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_convs=2, num_classes=1),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)
sync_bn = None  # one process

size = (256, 192)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=8, dataset=dict(metainfo=metainfo, pipeline=train_pipeline), **loader)
val_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=test_pipeline), **loader)
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=num_epochs, val_interval=num_epochs)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=num_epochs, convert_to_iter_based=True),
]
