# Faster R-CNN, ADN, on ViT-B/16 with ViTDet's simple feature pyramid. Needs mmpretrain (the extra `cls`).
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    './_base_/adn.py',
    './_base_/adn_networks.py',
]

# All levels are made of one map; those with a stage behind them would be stride 16 alone.
custom_hooks = [dict(type='SkipAwareDistillationHook', levels=[0, 1, 2, 3])]

model = dict(
    backbone=_base_.adn_vit_b16_backbone,
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=768, out_channels=256, num_outs=5),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))),
)
