# Mask R-CNN of which the mask head can be skipped: two of four convolutions always run. Codes such as FFFF-T.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(
    type='AnyDepthDetector',
    of='MaskRCNN',
    backbone=dict(_base_.adn_r50_backbone, skip='FFFF-F'),
    parts=[dict(type='SkippableTower', of='roi_head.mask_head', keep=2)],
)
