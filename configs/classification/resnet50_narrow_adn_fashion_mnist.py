# The any-depth net of resnet50_narrow_fashion_mnist.py, by Algorithm 1 as printed: all ten classes, all four stages.
_base_ = './resnet50_narrow_fashion_mnist.py'

model = dict(backbone=_base_.adn_r50_backbone)
custom_hooks = [dict(type='SkipAwareDistillationHook', gt_weight=0.0, prediction_weight=1.0)]
