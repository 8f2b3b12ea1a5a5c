# Table 4, ResNet-50, neither part: one set of norms, labels for both nets, no distillation; 75.2 / 72.2 in the paper.
_base_ = '../resnet50_adn_in1k.py'

model = dict(backbone=dict(skip_aware_norm=False))
custom_hooks = [_base_.distil_nothing]
