# Table 4, neither skip-aware norms nor distillation: top-1 on ImageNet 75.2 (super-net) / 72.2 (base-net) in the paper.
_base_ = '../faster_rcnn_r50_adn_1x_coco.py'

model = dict(backbone=dict(skip_aware_norm=False))
custom_hooks = [dict(type='SkipAwareDistillationHook', kd_weight=0.0)]
