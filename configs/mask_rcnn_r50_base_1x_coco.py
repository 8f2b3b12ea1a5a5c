# Table 5, Mask R-CNN, individual ResNet-50-Base: box AP 32.7, mask AP 29.9 in the paper.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/individual.py']

model = dict(backbone=_base_.r50_base_backbone)
