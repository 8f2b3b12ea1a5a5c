import re

import fuzz_inputs
import pytest
from conftest import DEMO_CONFIG

from adn_mmdet import UserError
from adn_mmdet.config import load_config
from adn_mmdet.keys import require_known


@pytest.fixture(scope='module')
def demo():
    return load_config(DEMO_CONFIG)._cfg_dict


REFUSED = {
    'train_dataloder.batch_size': 'the config has no train_dataloder: did you mean train_dataloader?',
    'train_dataloader.batchsize': 'train_dataloader has no batchsize: did you mean batch_size?',
    'model.backbone.deph': 'model.backbone (AdaptiveDepthResNet) has no deph: did you mean depth?',
    'model.bakbone.depth': 'model (MaskRCNN) has no bakbone: did you mean backbone?',
    'model.test_cfg.rcnn.scor_thr': 'model.test_cfg.rcnn has no scor_thr: did you mean score_thr?',
    'custom_hooks.0.alhpa': 'custom_hooks.0 (SkipAwareDistillationHook) has no alhpa: did you mean alpha?',
    'custom_hooks.5.alpha': 'custom_hooks is a list of 1, which has no 5',
    'custom_hooks.0': 'give the whole list, custom_hooks=[',
    'model.test_cfg.rcnn.score_thr.x': 'score_thr is 0.05, which has no keys',
    'default_hooks.checkpiont.interval': 'default_hooks has no checkpiont: did you mean checkpoint?',
    'train_cfg.max_iter': 'train_cfg (IterBasedTrainLoop) has no max_iter: did you mean max_iters?',
    'test_evaluator.clsswise': 'test_evaluator (CocoMetric) has no clsswise: did you mean classwise?',
    'zzz': 'the config has no zzz; a key that is really new belongs in a config file',
    'model.': 'model (MaskRCNN) has no ',
}
ACCEPTED = [
    'model.backbone.frozen_stages',  # of the class that ours extends
    'train_dataloader.dataset.indices',
    'train_dataloader.dataset.metainfo.classes',
    'train_cfg.val_begin',
    'optim_wrapper.clip_grad.max_norm',
    'find_unused_parameters',
    'randomness.seed',
    'test_evaluator.classwise',
]


@pytest.mark.parametrize('option', REFUSED)
def test_a_key_that_nothing_has(demo, option):
    with pytest.raises(UserError, match=re.escape(f'--cfg-options {option}: ') + '.*' + re.escape(REFUSED[option])):
        require_known(demo, {option: 1})


def test_keys_that_someone_takes(demo):
    for option in ACCEPTED:
        require_known(demo, {option: 1})
    for kind, option in (('GN', 'num_groups'), ('BN', 'requires_grad')):
        require_known(demo, {'model.backbone.norm_cfg.type': kind, f'model.backbone.norm_cfg.{option}': 4})
    require_known(demo, {'default_hooks.ema.type': 'EMAHook'})
    require_known(demo, {'model.backbone._delete_': True, 'model.backbone.type': 'ResNet', 'model.backbone.depth': 50})


def test_a_variable_changes_nothing_any_more(demo):
    with pytest.warns(UserWarning, match='data_root: a variable .*such as train_dataloader.dataset.data_root'):
        require_known(demo, {'data_root': 'elsewhere/'})


def test_damaged_options_are_refused_or_do_what_they_say(tmp_path):
    assert fuzz_inputs.command_lines(40, seed=0, folder=tmp_path).keys() == {'refused', 'read'}
