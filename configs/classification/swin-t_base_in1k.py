# Table 1, Swin-T's base-net alone: blocks (1, 1, 3, 1).
_base_ = './swin-t_in1k.py'

model = dict(backbone=_base_.swin_base_backbone)
