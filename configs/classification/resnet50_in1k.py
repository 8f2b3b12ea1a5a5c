# Table 1, ResNet-50 alone: top-1 76.7 in the paper. 150 epochs, 256 images a step.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/classification.py']

model = dict(backbone=dict(zero_init_residual=False))
optim_wrapper = dict(paramwise_cfg=_base_.no_decay)
param_scheduler = dict(milestones=[60, 100, 140])
train_cfg = dict(max_epochs=150)
