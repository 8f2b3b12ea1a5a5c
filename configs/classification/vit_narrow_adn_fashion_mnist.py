# The any-depth net of vit_narrow_fashion_mnist.py: its base-net learns from logits alone, as the paper's ViTs.
_base_ = './vit_narrow_fashion_mnist.py'

model = dict(backbone=_base_.adn_vit_backbone)
custom_hooks = [dict(type='SkipAwareDistillationHook', gt_weight=0.0, kd_weight=0.0, prediction_weight=1.0)]
