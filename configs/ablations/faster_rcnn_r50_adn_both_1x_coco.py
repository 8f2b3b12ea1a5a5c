# Table 4, skip-aware norms and distillation, as in every any-depth config: top-1 on ImageNet 77.6 / 76.1 in the paper.
_base_ = '../faster_rcnn_r50_adn_1x_coco.py'
