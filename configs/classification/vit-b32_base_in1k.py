# ViT-B/32's base-net alone: 8 blocks.
_base_ = './vit-b16_base_in1k.py'

model = dict(backbone=dict(patch_size=32))
