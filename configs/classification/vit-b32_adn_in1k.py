# Table 4, ViT-B/32, both parts: top-1 76.6 (super-net) / 74.3 (base-net) in the paper.
_base_ = './vit-b16_adn_in1k.py'

model = dict(backbone=dict(patch_size=32))
