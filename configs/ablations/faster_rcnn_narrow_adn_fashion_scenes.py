# faster_rcnn_narrow_adn_bccd.py on scenes of tools/benchmarks/fashion_scenes.py: ten classes, some of which are hard to
# tell apart, so that more hangs on the backbone; 3 epochs of 4000 scenes at 160×160.
_base_ = './faster_rcnn_narrow_adn_bccd.py'

data_root = 'data/fashion_scenes/'
metainfo = dict(
    classes=(
        *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
        *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
    )
)
size, num_epochs = (160, 160), 3
model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    roi_head=dict(bbox_roi_extractor=dict(finest_scale=28), bbox_head=dict(num_classes=10)),
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
dataset = dict(data_root=data_root, metainfo=metainfo)
test = dict(
    ann_file='annotations/instances_test.json', data_prefix=dict(img='test/'), pipeline=test_pipeline, **dataset
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **dataset), batch_size=8)
val_dataloader = dict(dataset=test, batch_size=8)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_test.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=num_epochs, val_interval=num_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=num_epochs, convert_to_iter_based=True),
]
