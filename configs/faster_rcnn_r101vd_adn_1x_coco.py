# Faster R-CNN, ADN, on the authors' ResNet-101-vd, whose weights download themselves; not a row of the paper.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(backbone=_base_.adn_r101vd_backbone)
