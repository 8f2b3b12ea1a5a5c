# Mask R-CNN, ADN, on Swin-T; mmdet's Swin-T has 42.7 / 39.3 box / mask AP in these settings.
_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    './_base_/adn.py',
    './_base_/adn_networks.py',
]

model = dict(backbone=_base_.adn_swin_t_backbone)
