# Faster R-CNN, ADN, on MobileNetV2.
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    './_base_/adn.py',
    './_base_/adn_networks.py',
]

model = dict(backbone=_base_.adn_mobilenetv2_backbone, neck=dict(in_channels=[24, 32, 96, 320]))
