# The base-net of resnet50_narrow_fashion_mnist.py alone.
_base_ = './resnet50_narrow_fashion_mnist.py'

model = dict(backbone=_base_.r50_base_backbone)
