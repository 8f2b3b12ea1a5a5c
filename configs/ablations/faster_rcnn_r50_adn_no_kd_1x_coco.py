# Table 4, skip-aware norms without distillation: with one of the two, top-1 on ImageNet 76.1 / 74.9 or 76.6 / 75.1.
_base_ = '../faster_rcnn_r50_adn_1x_coco.py'

custom_hooks = [dict(type='SkipAwareDistillationHook', kd_weight=0.0)]
