# What the configs in configs/classification/ share: the paper's own task, ImageNet, as the authors trained it.
custom_imports = dict(imports=['adn_mmdet'], allow_failed_imports=False)

# No label for the base-net: it learns from the super-net's logits, of an image's 500 likeliest classes, and, of
# ResNet-50, from the pooled outputs of stages 1 to 3. Of the ablation: labels for both nets, and no distillation.
distil_logits = [dict(type='SkipAwareDistillationHook', gt_weight=0.0, kd_weight=0.0, prediction_weight=1.0, top_k=500)]
distil_both = [dict(distil_logits[0], kd_weight=1.0, levels=(0, 1, 2))]
distil_nothing = [dict(type='SkipAwareDistillationHook', kd_weight=0.0)]

no_decay = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)  # of the weights of norms, and of biases

adn_r50_backbone = dict(type='AdaptiveDepthResNet', skip='FFFF', norm_eval=False)
r50_base_backbone = dict(type='ShallowResNet', stage_blocks=(2, 2, 3, 2), norm_eval=False)
