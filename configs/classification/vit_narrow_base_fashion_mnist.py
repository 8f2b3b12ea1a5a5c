# The base-net of vit_narrow_fashion_mnist.py alone: 8 blocks.
_base_ = './vit_narrow_fashion_mnist.py'

model = dict(backbone=dict(arch=dict(num_layers=8)))
