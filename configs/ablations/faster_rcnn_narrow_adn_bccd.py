# The setting of docs/ablations.md: ResNet-50's blocks at a sixteenth of its width, from scratch, on blood cells (BCCD).
_base_ = '../faster_rcnn_r50_adn_tv_1x_coco.py'

data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
width, channels, num_epochs = 4, 32, 10
model = dict(
    backbone=dict(base_channels=width, init_cfg=None),
    neck=dict(
        in_channels=[4 * width, 8 * width, 16 * width, 32 * width],
        out_channels=channels,
        norm_cfg=dict(type='GN', num_groups=8),
    ),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=channels, fc_out_channels=128, num_classes=3),
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
loader = dict(num_workers=0, persistent_workers=False)
dataset = dict(data_root=data_root, metainfo=metainfo)
train = dict(
    ann_file='annotations/instances_train.json', data_prefix=dict(img='train/'), pipeline=train_pipeline, **dataset
)
val = dict(ann_file='annotations/instances_val.json', data_prefix=dict(img='val/'), pipeline=test_pipeline, **dataset)
train_dataloader = dict(batch_size=4, dataset=train, **loader)
val_dataloader = dict(dataset=val, **loader)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

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
