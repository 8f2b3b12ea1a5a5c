# ResNet-50's blocks at an eighth of their width, on Fashion-MNIST (60,000 + 10,000 images, ten classes) at 32×32.
# Minutes on a CPU. The data downloads itself; without a network unpack the four files of Debian's dataset-fashion-mnist
# (/usr/share/datasets/fashion-mnist/*.gz) into data/fashion_mnist/.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/classification.py']

width, num_epochs = 8, 6
model = dict(
    backbone=dict(base_channels=width, stem_channels=width, in_channels=1, zero_init_residual=False),
    head=dict(num_classes=10, in_channels=32 * width),
)
data_preprocessor = dict(_delete_=True, mean=[72.94], std=[90.02], num_classes=10)

train_pipeline = [
    dict(type='Resize', scale=32),
    dict(type='RandomCrop', crop_size=32, padding=2),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
dataset = dict(_delete_=True, type='FashionMNIST', data_root='data/fashion_mnist')
loader = dict(batch_size=128, num_workers=0)
train_dataloader = dict(dataset=dict(dataset, split='train', pipeline=train_pipeline), drop_last=True, **loader)
val_dataloader = dict(dataset=dict(dataset, split='test', test_mode=True, pipeline=test_pipeline), **loader)
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=num_epochs, val_interval=num_epochs)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=_base_.no_decay,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=num_epochs, convert_to_iter_based=True),
]
