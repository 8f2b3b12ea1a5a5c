# Table 5, Faster R-CNN, individual ResNet-50-Base: box AP 32.4 in the paper.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/individual.py']

model = dict(backbone=_base_.r50_base_backbone)
