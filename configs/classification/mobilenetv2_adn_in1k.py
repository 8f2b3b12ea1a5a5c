# Table 1, MobileNetV2, ADN: top-1 72.7 (super-net) / 70.7 (base-net) in the paper. Codes have five letters.
_base_ = './mobilenetv2_in1k.py'

model = dict(backbone=_base_.adn_mobilenetv2_backbone)
custom_hooks = [_base_.distil_logits]
