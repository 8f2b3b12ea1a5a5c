# Table 1, Swin-T, ADN: top-1 81.8 (super-net) / 78.7 (base-net) in the paper.
_base_ = './swin-t_in1k.py'

model = dict(backbone=_base_.adn_swin_backbone)
custom_hooks = [_base_.distil_logits, _base_.average]
