# Table 4, skip-aware norms and distillation of the predictions alone: top-1 on ImageNet 77.6 / 75.9 in the paper.
_base_ = '../faster_rcnn_r50_adn_1x_coco.py'

custom_hooks = [dict(type='SkipAwareDistillationHook', kd_weight=0.0, prediction_weight=1.0)]
