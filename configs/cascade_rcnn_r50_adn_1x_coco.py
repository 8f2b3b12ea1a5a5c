# Cascade R-CNN of which all stages but the first can be skipped. Codes such as FFFF-T.
_base_ = ['mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(
    type='AnyDepthDetector',
    of='CascadeRCNN',
    backbone=dict(_base_.adn_r50_backbone, skip='FFFF-F'),
    parts=[dict(type='SkippableStages', of='roi_head', keep=1)],
)
