# What the configs in configs/classification/ share: the paper's own task, ImageNet, as the authors trained it.
custom_imports = dict(imports=['adn_mmdet'], allow_failed_imports=False)

# No label for the base-net: it learns from the super-net's logits, of an image's 500 likeliest classes, and, of
# ResNet-50, from the pooled outputs of stages 1 to 3. Of the ablation: labels for both nets, and no distillation.
distil_logits = dict(type='SkipAwareDistillationHook', gt_weight=0.0, kd_weight=0.0, prediction_weight=1.0, top_k=500)
distil_both = dict(distil_logits, kd_weight=1.0, levels=(0, 1, 2))
distil_nothing = dict(type='SkipAwareDistillationHook', kd_weight=0.0)

no_decay = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)  # of the weights of norms, and of biases
average = dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')  # of the weights; mmpretrain's of DeiT

# Base-nets alone are the stock networks of the mandatory blocks.
adn_r50_backbone = dict(type='AdaptiveDepthResNet', skip='FFFF', norm_eval=False)
r50_base_backbone = dict(type='ShallowResNet', stage_blocks=(2, 2, 3, 2), norm_eval=False)
adn_mobilenetv2_backbone = dict(type='AdaptiveDepthMobileNetV2', skip='FFFFF', out_indices=(7,))
mobilenetv2_base_backbone = dict(type='ShallowMobileNetV2', stage_blocks=(1, 2, 2, 2, 2), out_indices=(7,))
adn_vit_backbone = dict(type='AdaptiveDepthViT', skip='FFFF')
vit_base_backbone = dict(
    arch=dict(_delete_=True, embed_dims=768, num_layers=8, num_heads=12, feedforward_channels=3072)
)
adn_swin_backbone = dict(type='AdaptiveDepthSwin', skip='FFFF')
swin_base_backbone = dict(arch=dict(_delete_=True, embed_dims=96, depths=[1, 1, 3, 1], num_heads=[3, 6, 12, 24]))
