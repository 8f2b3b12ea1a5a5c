# A ViT of 12 blocks and 32 channels on Fashion-MNIST at 32×32, in patches of 8×8. Minutes on a CPU.
_base_ = './resnet50_narrow_fashion_mnist.py'

channels = 32
model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=channels, num_layers=12, num_heads=2, feedforward_channels=4 * channels),
        img_size=32,
        patch_size=8,
        in_channels=1,
    ),
    neck=None,
    head=dict(
        _delete_=True,
        type='VisionTransformerClsHead',
        num_classes=10,
        in_channels=channels,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
