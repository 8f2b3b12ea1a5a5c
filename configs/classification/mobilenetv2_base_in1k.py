# Table 1, MobileNetV2's base-net alone.
_base_ = './mobilenetv2_in1k.py'

model = dict(backbone=_base_.mobilenetv2_base_backbone)
