# Table 1, MobileNetV2 alone. 300 epochs, 256 images a step. The authors' dropout of 0.2 before the classifier is not
# among what mmpretrain's heads have.
_base_ = ['mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', '../_base_/classification.py']

optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=1e-5), paramwise_cfg=_base_.no_decay)
param_scheduler = dict(_delete_=True, type='MultiStepLR', by_epoch=True, milestones=[150, 225, 285], gamma=0.1)
