# Table 4, distillation without skip-aware norms: with one of the two, top-1 on ImageNet 76.1 / 74.9 or 76.6 / 75.1.
_base_ = '../faster_rcnn_r50_adn_1x_coco.py'

model = dict(backbone=dict(skip_aware_norm=False))
