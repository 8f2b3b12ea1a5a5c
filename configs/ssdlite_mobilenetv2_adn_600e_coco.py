# SSDLite, ADN, on MobileNetV2, from scratch as mmdet's, so that nothing is frozen.
_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'

custom_imports = dict(imports=['adn_mmdet'], allow_failed_imports=False)
custom_hooks = [*_base_.custom_hooks, dict(type='SkipAwareDistillationHook')]

model = dict(
    backbone=dict(type='AdaptiveDepthMobileNetV2', skip='FFFFF'),
    bbox_head=dict(type='PredictingSSDHead'),  # mmdet 3.3's own fails in every validation
)
