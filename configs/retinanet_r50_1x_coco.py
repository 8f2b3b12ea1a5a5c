# Table 5 (NeurIPS version), RetinaNet, individual ResNet-50: box AP 36.4 in the paper.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', './_base_/individual.py']

model = dict(backbone=_base_.r50_backbone)
