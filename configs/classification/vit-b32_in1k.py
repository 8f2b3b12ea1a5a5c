# ViT-B/32 alone, trained as ViT-B/16.
_base_ = './vit-b16_in1k.py'

model = dict(backbone=dict(patch_size=32))
