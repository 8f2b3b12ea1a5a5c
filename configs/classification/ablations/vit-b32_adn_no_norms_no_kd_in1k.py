# Table 4, ViT-B/32, neither part: one set of norms, labels for both nets, no distillation; 75.7 / 74.1 in the paper.
_base_ = '../vit-b32_adn_in1k.py'

model = dict(backbone=dict(skip_aware_norm=False))
custom_hooks = [_base_.distil_nothing, _base_.average]
