# Table 1, ResNet-50, ADN: top-1 77.6 (super-net) / 76.1 (base-net) in the paper.
_base_ = './resnet50_in1k.py'

model = dict(backbone=_base_.adn_r50_backbone)
custom_hooks = [_base_.distil_both]
