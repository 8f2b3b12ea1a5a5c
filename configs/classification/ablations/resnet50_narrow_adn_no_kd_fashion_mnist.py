# The ablation of Table 4 on Fashion-MNIST: skip-aware norms without distillation: labels for both nets.
_base_ = '../resnet50_narrow_adn_fashion_mnist.py'

custom_hooks = [_base_.distil_nothing]
