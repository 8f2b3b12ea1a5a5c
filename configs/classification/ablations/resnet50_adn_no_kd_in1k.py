# Table 4, ResNet-50, skip-aware norms without distillation: labels for both nets.
_base_ = '../resnet50_adn_in1k.py'

custom_hooks = [_base_.distil_nothing]
