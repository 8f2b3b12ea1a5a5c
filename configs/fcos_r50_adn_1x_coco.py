# FCOS of which the head's towers can be skipped: two of four convolutions always run. Codes such as FFFF-T.
# mmdet's own is on Caffe's ResNet-50; ADN weights are of the usual kind, on RGB images.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', './_base_/adn.py']

model = dict(
    type='AnyDepthDetector',
    of='FCOS',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        _base_.adn_r50_backbone, skip='FFFF-F', style='pytorch', norm_cfg=dict(type='BN', requires_grad=True)
    ),
    parts=[dict(type='SkippableTower', of='bbox_head', keep=2)],
)
