# The paper's other networks as backbones of detectors, beside adn.py. Not rows of the paper, which has ResNet-50 alone.
# The authors' ADN weights of ImageNet download themselves on first use, by the package gdown.

# Layer norms have no statistics, so that nothing need be frozen.
adn_swin_t_backbone = dict(
    type='AdaptiveDepthSwin',
    skip='FFFF',
    convert_weights=False,
    init_cfg=dict(type='Pretrained', checkpoint='adn://swin_t'),
)

# Five letters. conv1 and layer1 and all statistics are frozen, as in adn.py; the last convolution is not used.
adn_mobilenetv2_backbone = dict(
    _delete_=True,
    type='AdaptiveDepthMobileNetV2',
    skip='FFFFF',
    out_indices=(1, 2, 4, 6),
    frozen_stages=1,
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='adn://mobilenet_v2'),
)

# As ViTDet, in windows of 14 × 14 patches but for four blocks. ViTDet's own, 2, 5, 8 and 11, are those that can be
# skipped.
adn_vit_b16_backbone = dict(
    _delete_=True,
    type='AdaptiveDepthViT',
    arch='b',
    patch_size=16,
    skip='FFFF',
    with_cls_token=False,
    out_type='featmap',
    out_indices=[11],
    drop_path_rate=0.1,
    window_size=14,
    global_blocks=(1, 4, 7, 10),
    with_cp=True,
    init_cfg=dict(type='Pretrained', checkpoint='adn://vit_b_16'),
)
