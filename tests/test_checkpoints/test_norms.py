import copy
import json
import pickle
import re

import pytest
import torch
from conftest import DEMO_CONFIG
from mmengine.config import Config
from tiny import build, load_tool, tiny_config
from torch.nn.modules.batchnorm import _BatchNorm

from adn_mmdet import UserError
from adn_mmdet.checkpoints import estimate_statistics, load_from_local, load_norms, recalibrate

STATISTICS = ('running_mean', 'running_var')


@pytest.fixture(scope='module')
def detector():
    """A RetinaNet with batch norms in backbone, neck and head."""
    cfg = tiny_config('retinanet')
    cfg.model.neck.norm_cfg = cfg.model.bbox_head.norm_cfg = dict(type='BN')
    return build(cfg).train()


@pytest.fixture(scope='module')
def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return [dict(inputs=list(pair), data_samples=None) for pair in images]


def by_hand(detector, batches, skip):
    """Mean over batches of each batch's mean and unbiased variance of what reaches a norm, by the norm's name."""
    detector = copy.deepcopy(detector)
    found = {}

    def record(name):
        def pre_hook(module, inputs):
            (features,) = inputs
            mean = features.mean((0, 2, 3))
            squares = ((features - mean[:, None, None]) ** 2).sum((0, 2, 3))
            found.setdefault(name, []).append((mean, squares / (features[:, 0].numel() - 1)))

        return pre_hook

    for name, module in detector.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(record(name))
    with torch.no_grad():
        for data in batches:
            images = torch.stack(data['inputs']).float()[:, [2, 1, 0]]  # the config turns BGR to RGB
            preprocessor = detector.data_preprocessor
            images = (images - preprocessor.mean) / preprocessor.std
            detector.neck(detector.backbone(images, skip=skip))
    return {name: [torch.stack(values).mean(0) for values in zip(*rows)] for name, rows in found.items()}


def test_statistics_are_those_of_the_features(detector, batches):
    before = copy.deepcopy(detector.state_dict())
    modes = [module.training for module in detector.modules()]
    statistics, num_images = estimate_statistics(detector, 'TFTF', batches)
    assert num_images == 6
    expected = by_hand(detector, batches, 'TFTF')
    assert statistics.keys() == {f'{name}.{kind}' for name in expected for kind in STATISTICS}
    for name, values in expected.items():
        for kind, value in zip(STATISTICS, values):
            torch.testing.assert_close(statistics[f'{name}.{kind}'], value, rtol=1e-4, atol=1e-5)
    # Stages 1 and 3 skipped, 2 and 4 not; blocks that are skipped, the other set and the head did not run.
    backbone = {name.removeprefix('backbone.') for name in expected if name.startswith('backbone.')}
    ran = {name for name in backbone if name.endswith(('.bn1', '.bn1_skip'))}
    assert ran == (
        {f'layer1.{block}.bn1_skip' for block in range(2)}
        | {f'layer2.{block}.bn1' for block in range(4)}
        | {f'layer3.{block}.bn1_skip' for block in range(3)}
        | {f'layer4.{block}.bn1' for block in range(3)}
    )
    assert 'bn1' in backbone and 'neck.fpn_convs.0.bn' in expected
    assert not any(name.startswith('bbox_head') for name in expected)
    assert modes == [module.training for module in detector.modules()]
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert str(detector.backbone.skip) == 'FFFF'


def save(path, statistics, skip='TFTF', sha256='0' * 64):
    torch.save(dict(skip=skip, checkpoint_sha256=sha256, num_images=6, statistics=statistics), path)
    return path


def test_loading_changes_these_norms_only(detector, batches, tmp_path):
    statistics, _ = estimate_statistics(detector, 'TFTF', batches)
    changed = copy.deepcopy(detector)
    load_norms(changed, save(tmp_path / 'norms.pth', statistics), '0' * 64, ['TFTF'])
    before = detector.state_dict()
    for key, value in changed.state_dict().items():
        assert torch.equal(value, statistics.get(key, before[key])), key
    assert changed.backbone.num_untrained_norms == 0


def test_files_that_are_refused_change_nothing(detector, batches, tmp_path):
    statistics, _ = estimate_statistics(detector, 'TFTF', batches[:1])
    before = copy.deepcopy(detector.state_dict())
    path, key = save(tmp_path / 'norms.pth', statistics), list(statistics)[-1]
    unknown = save(tmp_path / 'unknown.pth', {**statistics, 'backbone.layer9.running_mean': statistics[key]})
    misshapen = save(tmp_path / 'misshapen.pth', {**statistics, key: statistics[key][:1]})
    (tmp_path / 'cut.pth').write_bytes(path.read_bytes()[:5000])

    def refused(changes=(), without=()):
        kept = {**statistics, **dict(changes)}
        file = tmp_path / f'{len(list(tmp_path.iterdir()))}.pth'
        return save(file, {name: value for name, value in kept.items() if name not in without})

    torch.save(detector.state_dict(), tmp_path / 'weights.pth')
    for file, sha256, codes, message in (
        (path, '0' * 64, ['TFTT'], 'is for TFTF alone, but the test is of TFTT'),
        (path, '0' * 64, ['TFTF', 'FFFF'], 'is for TFTF alone, but the test is of TFTF, FFFF'),
        (path, '0' * 64, [], 'is for TFTF alone, but the test is of a net without depths'),
        (path, '1' * 64, ['TFTF'], 'was made from another checkpoint'),
        (
            unknown,
            '0' * 64,
            ['TFTF'],
            'does not fit the config: 0 missing, 1 unexpected (backbone.layer9.running_mean)',
        ),
        (misshapen, '0' * 64, ['TFTF'], f'{key} has shape (1,) but the config wants'),
        (refused(without={key}), '0' * 64, ['TFTF'], f'1 missing ({key})'),
        (refused(without=statistics), '0' * 64, ['TFTF'], 'holds nothing where only weights should be'),
        (refused(without={name for name in statistics if name.startswith('neck.')}), '0' * 64, ['TFTF'], '16 missing'),
        (refused({key: torch.full_like(statistics[key], torch.nan)}), '0' * 64, ['TFTF'], f'{key} holds NaN'),
        (refused({key: -statistics[key]}), '0' * 64, ['TFTF'], f'{key} holds variances below zero (1 such'),
        (refused({key: statistics[key].long()}), '0' * 64, ['TFTF'], f'{key} is of torch.int64, but the model has'),
        (refused({key: 5}), '0' * 64, ['TFTF'], f'holds {key} where only weights should be'),
        (save(tmp_path / 'none.norms.pth', None), '0' * 64, ['TFTF'], 'holds no recalibrated norms'),
        (tmp_path / 'weights.pth', '0' * 64, ['TFTF'], 'holds no recalibrated norms'),
        (tmp_path / 'cut.pth', '0' * 64, ['TFTF'], 'is incomplete'),
        (tmp_path / 'none.pth', '0' * 64, ['TFTF'], 'there is no'),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            load_norms(detector, file, sha256, codes)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_a_net_without_batch_norms(batches):
    net = build(tiny_config('retinanet', norm_cfg=dict(type='GN', num_groups=2)))
    with pytest.raises(UserError, match='RetinaNet has no batch norm in backbone and neck at FFFF'):
        estimate_statistics(net, 'FFFF', batches)


def test_no_images(detector):
    with pytest.raises(UserError, match='there are no training images .* check train_dataloader'):
        estimate_statistics(detector, 'FFFF', [])


def test_norms_of_a_neck_that_never_run_keep_their_statistics(detector, batches, tmp_path):
    changed = copy.deepcopy(detector)
    changed.neck.spare = torch.nn.BatchNorm2d(2)
    changed.neck.spare.running_mean.fill_(3)
    statistics, _ = estimate_statistics(changed, 'TFTF', batches)
    assert statistics['neck.spare.running_mean'].tolist() == [3, 3]
    load_norms(changed, save(tmp_path / 'norms.pth', statistics), '0' * 64, ['TFTF'])


@pytest.fixture(scope='module')
def checkpoint(trained, tmp_path_factory):
    """A copy, so that files can be written beside it."""
    path = tmp_path_factory.mktemp('recalibration') / 'iter_4.pth'
    path.write_bytes((trained / 'iter_4.pth').read_bytes())
    return path


@pytest.fixture(scope='module')
def norms(checkpoint, tiny_options):
    argv = [DEMO_CONFIG, str(checkpoint), '--skip', 'ttff', '--batches', '3', '--work-dir', str(checkpoint.parent)]
    before = checkpoint.read_bytes()
    assert load_tool('recalibrate').main([*argv, *tiny_options]) == 0
    assert checkpoint.read_bytes() == before
    return checkpoint.with_name('iter_4.norms_TTFF.pth')


def test_command_line(norms, checkpoint, tiny_options, tmp_path, capsys):
    content = load_from_local(norms)
    assert (content['skip'], content['num_images'], len(content['checkpoint_sha256'])) == ('TTFF', 6, 64)
    again = save(tmp_path / 'again.pth', {})  # an earlier file of norms may be replaced
    argv = [DEMO_CONFIG, str(checkpoint), '--skip', 'TTFF', '--batches', '3', '--out', str(again)]
    assert load_tool('recalibrate').main([*argv, '--work-dir', str(tmp_path), *tiny_options]) == 0
    assert f'--norms {again}' in capsys.readouterr().out
    repeated = load_from_local(again)['statistics']
    assert repeated.keys() == content['statistics'].keys()
    assert all(torch.equal(repeated[key], value) for key, value in content['statistics'].items())
    assert not list(tmp_path.glob('*.partial'))


def test_testing_with_norms_is_testing_weights_that_hold_them(norms, checkpoint, tiny_options, tmp_path):
    in_place = tmp_path / 'in_place.pth'
    weights = load_from_local(checkpoint)['state_dict']
    torch.save({**weights, **load_from_local(norms)['statistics']}, in_place)
    found, runs = [], []
    for path, arguments in ((checkpoint, ['--norms', str(norms)]), (in_place, [])):
        argv = [DEMO_CONFIG, str(path), '--skip', 'TTFF', '--work-dir', str(tmp_path), *arguments]
        argv += ['--out', str(tmp_path / 'found.pkl'), *tiny_options, 'test_dataloader.dataset.indices=2']
        assert load_tool('test').main([*argv, 'model.test_cfg.rcnn.score_thr=0.0']) == 0
        images = pickle.loads((tmp_path / 'found.pkl').read_bytes())
        found.append(torch.cat([image['pred_instances']['bboxes'] for image in images]))
        runs.append(json.loads((tmp_path / 'sub_nets.json').read_text())['run'])
    assert len(found[0]) and torch.equal(*found)
    assert len(runs[0]['norms_sha256']) == 64 and runs[0].keys() - runs[1].keys() == {'norms_sha256'}


def refused(capsys, tool, argv, message):
    capsys.readouterr()
    assert load_tool(tool).main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error and error.count('\n') == 1, error


def test_norms_of_another_depth_are_one_line(norms, checkpoint, tiny_options, tmp_path, capsys):
    argv = [DEMO_CONFIG, str(checkpoint), '--norms', str(norms), '--work-dir', str(tmp_path), *tiny_options]
    refused(capsys, 'test', argv, 'is for TTFF alone, but the test is of FFFF')
    assert not (tmp_path / 'sub_nets.json').exists()


def test_a_number_of_batches_that_is_none():
    with pytest.raises(UserError, match='--batches should be at least 1, but got 1.5'):
        recalibrate(Config(), 'x.pth', 'TTTT', num_batches=1.5)


def test_recalibrations_that_are_refused(checkpoint, tiny_options, tmp_path, capsys):
    before = checkpoint.read_bytes()
    (tmp_path / 'link.pth').symlink_to(checkpoint)
    for arguments, options, message in (
        (['--skip', 'TTFF', '--out', str(checkpoint)], [], 'holds something else than norms'),
        (['--skip', 'TTFF', '--out', str(tmp_path / 'link.pth')], [], 'holds something else than norms'),
        (['--skip', 'TTFF,FFFF'], [], 'is not a skip code'),
        (['--skip', 'TTFF', '--batches', '0'], [], '--batches should be at least 1'),
        (['--skip', 'TTFF', '--launcher', 'pytorch'], [], 'in one process'),
        (['--skip', 'TTFF'], ['model.backbone.skip=FFFF'], 'disagree'),
        (['--skip', 'TTFF'], ['train_dataloader=None'], 'train_dataloader is None'),
        (['--skip', 'TTFF'], ['train_dataloader.dataset.ann_file=none.json'], 'there is no annotation file'),
    ):
        argv = [DEMO_CONFIG, str(checkpoint), *arguments, '--work-dir', str(tmp_path), *tiny_options, *options]
        refused(capsys, 'recalibrate', argv, message)
    assert checkpoint.read_bytes() == before
