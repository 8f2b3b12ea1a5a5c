# What the any-depth configs share. Two bases may not both define `model`, so the backbones are variables.
custom_imports = dict(imports=['adn_mmdet'], allow_failed_imports=False)
custom_hooks = [dict(type='SkipAwareDistillationHook')]

# As the authors train detectors: from ADN weights of ImageNet, stem and stage 1 frozen, BN statistics frozen.
adn_r50_backbone = dict(
    type='AdaptiveDepthResNet',
    skip='FFFF',
    frozen_stages=1,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_adn_imagenet.pth'),
)

# The same of the authors' vd variants (shortcuts pool, then project), whose weights download themselves on first use.
adn_r50vd_backbone = dict(
    adn_r50_backbone, avg_down=True, init_cfg=dict(type='Pretrained', checkpoint='adn://resnet50vd')
)
adn_r101vd_backbone = dict(
    adn_r50vd_backbone, depth=101, init_cfg=dict(type='Pretrained', checkpoint='adn://resnet101vd')
)

# From torchvision's ResNet-50, which has no second set of norms: both sets learn, so nothing is frozen.
adn_r50_tv_backbone = dict(
    type='AdaptiveDepthResNet',
    skip='FFFF',
    frozen_stages=-1,
    norm_eval=False,
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
