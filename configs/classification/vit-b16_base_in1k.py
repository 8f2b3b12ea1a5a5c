# Table 1, ViT-B/16's base-net alone: 8 blocks.
_base_ = './vit-b16_in1k.py'

model = dict(backbone=_base_.vit_base_backbone)
