# Table 5, Faster R-CNN, ADN: box AP 37.8 (super-net) / 34.0 (base-net) in the paper.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(backbone=_base_.adn_r50_backbone)
