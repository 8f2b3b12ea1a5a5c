# mask_rcnn_r50_adn_1x_coco.py trained at several sizes: for tools/test.py --sizes 800,640,480.
_base_ = ['./mask_rcnn_r50_adn_1x_coco.py', './_base_/multi_scale.py']

pipeline = [_base_.multi_scale_resize if step.type == 'Resize' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
