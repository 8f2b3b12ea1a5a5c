# RetinaNet, ADN, on Swin-T.
_base_ = [
    'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
    './_base_/adn.py',
    './_base_/adn_networks.py',
]

model = dict(backbone=_base_.adn_swin_t_backbone)
