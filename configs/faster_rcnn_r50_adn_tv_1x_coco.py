# Faster R-CNN, ADN, from torchvision's ResNet-50: needs no weights of the authors; not a row of the paper.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(backbone=_base_.adn_r50_tv_backbone)

# Running statistics are learned: synchronise them over GPUs.
sync_bn = 'torch'
