# Table 1, ViT-B/16, ADN: top-1 81.3 (super-net) / 79.4 (base-net) in the paper.
_base_ = './vit-b16_in1k.py'

model = dict(backbone=_base_.adn_vit_backbone)
custom_hooks = [_base_.distil_logits, _base_.average]
