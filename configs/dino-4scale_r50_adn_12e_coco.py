# DINO of any depth: backbone, encoder and decoder, FFFF-F-F … TTTT-T-T; mmdet's own has 49.0 box AP.
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', './_base_/adn.py']

model = dict(
    type='AnyDepthDetector',
    of='DINO',
    backbone=dict(_base_.adn_r50_backbone, skip='FFFF-F-F'),
    parts=[
        dict(type='SkippableLayers', of='encoder', keep=3),
        dict(type='SkippableLayers', of='decoder', keep=3, skip_aware_norm=False),
    ],
)
