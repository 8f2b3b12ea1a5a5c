# Table 4, ViT-B/32, distillation with one set of norms.
_base_ = '../vit-b32_adn_in1k.py'

model = dict(backbone=dict(skip_aware_norm=False))
