# Deformable DETR of any depth: backbone, encoder and decoder, FFFF-F-F … TTTT-T-T; mmdet's own has 44.3 box AP.
_base_ = ['mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', './_base_/adn.py']

model = dict(
    type='AnyDepthDetector',
    of='DeformableDETR',
    backbone=dict(_base_.adn_r50_backbone, skip='FFFF-F-F'),
    parts=[
        dict(type='SkippableLayers', of='encoder', keep=3),
        dict(type='SkippableLayers', of='decoder', keep=3, skip_aware_norm=False),
    ],
)
