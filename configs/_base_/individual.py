# What the individually trained nets share: one depth, trained alone in the settings of the any-depth configs.
custom_imports = dict(imports=['adn_mmdet'], allow_failed_imports=False)

r50_backbone = dict(
    frozen_stages=1, norm_eval=True, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')
)

# The base-net's blocks alone: min(n - 1, (n + 1) // 2) of [3, 4, 6, 3].
r50_base_backbone = dict(
    type='ShallowResNet',
    stage_blocks=(2, 2, 3, 2),
    frozen_stages=1,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_base_imagenet.pth'),
)
