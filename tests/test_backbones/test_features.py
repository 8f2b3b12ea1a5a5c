import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from tiny import DETECTORS, batch, build, tiny_config

from adn_mmdet import extract_feats, set_skip


@pytest.mark.parametrize('name', DETECTORS)
def test_features_of_several_codes(name):
    model = build(tiny_config(name, skip='TFFF')).eval()
    inputs = batch(model, with_mask=name == 'mask_rcnn')['inputs']
    feats = extract_feats(model, inputs, ['FFFF', 'tttt'])
    assert list(feats) == ['FFFF', 'TTTT'] and len(feats['FFFF']) == 5
    assert feats['FFFF'][0].shape[:2] == (2, 16)
    assert str(model.backbone.skip) == 'TFFF' and not model.training
    for code, levels in feats.items():
        set_skip(model, code)
        assert all(map(torch.equal, levels, model.extract_feat(inputs)))


def test_through_a_wrapper_in_the_mode_it_is_in():
    model = build(tiny_config())
    average = ExponentialMovingAverage(model).train()
    inputs = batch(model)['inputs']
    feats = extract_feats(average, inputs, ['FFFF'])['FFFF']
    assert average.training and feats[0].requires_grad is False  # an average takes no gradient
    assert all(map(torch.equal, feats, average.module.extract_feat(inputs)))


def test_bad_code():
    model = build(tiny_config())
    with pytest.raises(ValueError, match="'TT' is not a skip code"):
        extract_feats(model, torch.zeros(1, 3, 64, 64), ['TT'])
