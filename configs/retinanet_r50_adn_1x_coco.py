# Table 5 (NeurIPS version), RetinaNet, ADN: box AP 37.4 (super-net) / 35.2 (base-net) in the paper.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(backbone=_base_.adn_r50_backbone)
