# Table 5, Mask R-CNN, ADN: box AP 38.3 / 34.1, mask AP 34.1 / 31.2 (super-net / base-net) in the paper.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(backbone=_base_.adn_r50_backbone)
