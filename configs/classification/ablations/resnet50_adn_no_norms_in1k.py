# Table 4, ResNet-50, distillation with one set of norms.
_base_ = '../resnet50_adn_in1k.py'

model = dict(backbone=dict(skip_aware_norm=False))
