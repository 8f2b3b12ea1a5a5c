# Table 5, Mask R-CNN, individual ResNet-50: box AP 37.2, mask AP 34.1 in the paper.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/individual.py']

model = dict(backbone=_base_.r50_backbone)
