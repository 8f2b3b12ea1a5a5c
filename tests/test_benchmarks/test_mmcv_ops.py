import argparse

import pytest
import torch
from benchmarks.mmcv_ops import OURS, STOCK, prepare, serve
from tiny import tiny_config


@pytest.mark.parametrize('name', ['faster_rcnn', 'mask_rcnn'])
def test_both_processes_detect_the_same(name, tmp_path, capsys):
    cfg = tiny_config(name)
    cfg.model.test_cfg.rcnn.max_per_img = 5
    cfg.dump(str(tmp_path / 'config.py'))
    args = argparse.Namespace(config=str(tmp_path / 'config.py'), images=None, shape=(64, 64), rounds=2)
    files = prepare(args, tmp_path)
    assert torch.load(files[STOCK], weights_only=False)['model'].backbone.type == 'ResNet'
    capsys.readouterr()  # a line for each weight, where another test has begun to log
    for file in files.values():
        serve(file, ['0', '0', '1'])
    seconds = [float(line) for line in capsys.readouterr().out.split()]
    assert len(seconds) == 6 and min(seconds) > 0
    ours, stock = torch.load(files[OURS]), torch.load(files[STOCK])
    assert [set(image) for image in ours] == [{'bboxes', 'scores', 'labels', *(['masks'] * (name == 'mask_rcnn'))}] * 3
    assert all(len(image['scores']) == 5 for image in ours)
    for one, other in zip(ours, stock, strict=True):
        assert all(torch.equal(values, other[name]) for name, values in one.items())
