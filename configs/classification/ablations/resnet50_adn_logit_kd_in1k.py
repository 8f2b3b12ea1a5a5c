# Table 4, ResNet-50, both parts with the KL of the output only: 77.6 / 75.9 in the paper.
_base_ = '../resnet50_adn_in1k.py'

custom_hooks = [_base_.distil_logits]
