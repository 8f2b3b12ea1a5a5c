# Table 1, ResNet-50's base-net alone: top-1 75.0 in the paper.
_base_ = './resnet50_in1k.py'

model = dict(backbone=_base_.r50_base_backbone)
