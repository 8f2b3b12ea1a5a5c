# ATSS of which the head's towers can be skipped: two of four convolutions always run. Codes such as FFFF-T.
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', './_base_/adn.py']

model = dict(
    type='AnyDepthDetector',
    of='ATSS',
    backbone=dict(_base_.adn_r50_backbone, skip='FFFF-F'),
    parts=[dict(type='SkippableTower', of='bbox_head', keep=2)],
)
