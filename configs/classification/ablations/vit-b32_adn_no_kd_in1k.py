# Table 4, ViT-B/32, skip-aware norms without distillation: labels for both nets.
_base_ = '../vit-b32_adn_in1k.py'

custom_hooks = [_base_.distil_nothing, _base_.average]
