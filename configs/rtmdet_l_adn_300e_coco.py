# RTMDet-l of any depth: backbone, neck and head, FFFF-F-F … TTTT-T-T; mmdet's own has 51.3 box AP.
_base_ = 'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py'

custom_imports = dict(imports=['adn_mmdet'], allow_failed_imports=False)
custom_hooks = [*_base_.custom_hooks, dict(type='SkipAwareDistillationHook')]

model = dict(
    type='AnyDepthDetector',
    of='RTMDet',
    backbone=dict(type='AdaptiveDepthCSPNeXt', skip='FFFF-F-F'),
    parts=[
        dict(type='SkippableCSP', of='neck', keep=2),
        dict(type='SkippableTower', of='bbox_head', keep=1),
    ],
)
