# The ablation of Table 4 on Fashion-MNIST: neither part.
_base_ = '../resnet50_narrow_adn_fashion_mnist.py'

model = dict(backbone=dict(skip_aware_norm=False))
custom_hooks = [_base_.distil_nothing]
