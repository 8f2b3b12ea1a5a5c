import argparse
import errno
import os
import warnings

import pytest
import torch
from authors_resnet import authors_resnet
from mmengine.registry import MODELS
from tiny import load_tool
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet

from adn_mmdet import AdaptiveDepthResNet, UserError
from adn_mmdet.checkpoints import RESNETS, convert_checkpoint, convert_weights, load_from_local

CODES = ('FFFF', 'TTTT', 'TFTF')


@pytest.fixture(scope='module')
def vd():
    return authors_resnet('resnet50vd')


@pytest.fixture(scope='module')
def expected(vd):
    """What converting any layout of it should give; the first test runs these weights."""
    return convert_weights(vd.state_dict()).weights


def holds(path, weights):
    saved = torch.load(path, weights_only=True)['state_dict']
    tensors_equal = (torch.equal(saved[key], weights[key]) for key in saved if 'num_batches_tracked' not in key)
    return all(tensors_equal) and {key for key in weights if 'num_batches' not in key} <= saved.keys() <= weights.keys()


@pytest.fixture
def paths(tmp_path):
    return tmp_path / 'source.pth', tmp_path / 'out.pth'


def pretrained(path, arch, width=8):
    """An AdaptiveDepthResNet as a config builds it, from the file, without a single warning."""
    cfg = dict(type='AdaptiveDepthResNet', base_channels=width, **RESNETS[arch])
    backbone = MODELS.build(cfg | dict(init_cfg=dict(type='Pretrained', checkpoint=str(path))))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        backbone.init_weights()
    assert backbone.num_untrained_norms == 0
    return backbone.eval()


def same_outputs(backbone, reference, size=(64, 64)):
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return all(
            torch.equal(ours, theirs)
            for code in CODES
            for ours, theirs in zip(backbone(x, code), reference.features(x, code), strict=True)
        )


@pytest.mark.parametrize('arch', RESNETS)
def test_every_depth_is_the_authors_network_to_the_bit(arch, paths):
    source, out = paths
    reference = authors_resnet(arch)
    torch.save(reference.state_dict(), source)
    conversion = convert_checkpoint(source, out)
    assert (conversion.arch, conversion.prefix, conversion.averaged) == (arch, '', False)
    assert conversion.dropped == ['fc.weight', 'fc.bias'] and conversion.num_untrained_norms == 0
    assert len(conversion.renamed) == (6 if arch.endswith('vd') else 0)
    backbone = pretrained(out, arch)
    # The second size is odd at every stage: the last window of the shortcut's pooling is then cut.
    assert all(same_outputs(backbone, reference, size) for size in ((64, 64), (75, 101)))
    content = torch.load(out, weights_only=True)
    assert content.keys() == {'state_dict', 'meta'} and content['meta']['arch'] == arch
    assert content['state_dict'].keys() <= backbone.state_dict().keys()


def training_script(weights, average=None):
    """The dict that torchvision's training scripts, and the authors', save."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    args = argparse.Namespace(model='resnet50vd', skip_cfg=[True, False], lr=0.1, output_dir='x')
    content = dict(model=weights, optimizer=optimizer.state_dict(), lr_scheduler=scheduler.state_dict(), epoch=3)
    return content | dict(args=args, scaler={'scale': 65536.0}) | (dict(model_ema=average) if average else {})


def detector_of_the_authors(weights):
    frozen = {key: value for key, value in weights.items() if 'num_batches_tracked' not in key and 'fc.' not in key}
    return {f'backbone.body.model.{key}': value for key, value in frozen.items()} | {
        'backbone.fpn.inner_blocks.0.0.weight': torch.zeros(1),
        'head.classification_head.cls_logits.weight': torch.zeros(1),
    }


LAYOUTS = {
    'ddp': lambda weights: {f'module.{key}': value for key, value in weights.items()},
    'training script': training_script,
    'average alone': lambda weights: {'n_averaged': torch.tensor(9), **LAYOUTS['ddp'](weights)},
    'detector': detector_of_the_authors,
    'detector of a training script': lambda weights: training_script(detector_of_the_authors(weights)),
    'mmengine': lambda weights: dict(state_dict=weights, meta={'epoch': 1}, message_hub={}),
    'mmengine detector': lambda weights: dict(
        state_dict={f'backbone.{key}': value for key, value in weights.items()} | {'neck.conv.weight': torch.zeros(1)}
    ),
    'in ema_': lambda weights: {f'ema_backbone.{key}': value for key, value in weights.items()},
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, vd, expected, paths):
    source, out = paths
    torch.save(LAYOUTS[layout](vd.state_dict()), source)
    dropped = convert_checkpoint(source, out, arch='resnet50vd').dropped
    assert ('neck.conv.weight' in dropped) == (layout == 'mmengine detector')
    assert ('n_averaged' in dropped) == (layout == 'average alone')
    assert holds(out, expected)


def test_a_detector_of_mmengine_itself(trained, paths):
    """Its log history loads, and its heads are dropped."""
    conversion = convert_checkpoint(trained / 'iter_4.pth', paths[1])
    assert conversion.prefix == 'backbone.' and any(key.startswith('roi_head.') for key in conversion.dropped)
    saved = load_from_local(trained / 'iter_4.pth')['state_dict']
    inner = {key.removeprefix('backbone.'): value for key, value in saved.items() if key.startswith('backbone.')}
    assert holds(paths[1], inner)


@pytest.mark.parametrize('mmengine', [False, True])
def test_model_or_average_is_the_users_choice(mmengine, vd, expected, paths):
    source, out = paths
    other = authors_resnet('resnet50vd')
    other.conv1.weight.data += 1
    average = AveragedModel(other).state_dict()  # module.* and n_averaged
    if mmengine:  # mmengine.hooks.EMAHook saves the average as state_dict
        content = dict(state_dict=other.state_dict(), ema_state_dict=AveragedModel(vd).state_dict())
    else:
        content = training_script(vd.state_dict(), average)
    torch.save(content, source)
    with pytest.raises(UserError, match='source.pth: holds .* and their moving average: say --no-ema or --ema'):
        convert_checkpoint(source, out)
    assert not out.exists()
    for ema, conv1 in ((False, vd.conv1), (True, other.conv1)):
        assert convert_checkpoint(source, out, ema).averaged == ema
        assert holds(out, expected | {'conv1.weight': conv1.weight})


def test_a_choice_that_is_none(vd, paths):
    source, out = paths
    torch.save(training_script(vd.state_dict()), source)
    with pytest.raises(UserError, match="the model's own weights alone: leave --ema out"):
        convert_checkpoint(source, out, ema=True)
    torch.save({'model_ema': AveragedModel(vd).state_dict()}, source)
    with pytest.raises(UserError, match='a moving average alone: leave --no-ema out'):
        convert_checkpoint(source, out, ema=False)
    assert convert_checkpoint(source, out).averaged


def torchvisions(constructor, *args, **kwargs):
    """The names and shapes of a network's weights; each is one zero, so that the file is small."""
    with torch.device('meta'):
        weights = constructor(*args, **kwargs).state_dict()
    return {key: torch.zeros(()).expand(value.shape) for key, value in weights.items()}


def test_plain_weights_stay_known_as_untrained(paths):
    source, out = paths
    torch.save(torchvisions(resnet.resnet50), source)
    conversion = convert_checkpoint(source, out)
    assert (conversion.arch, conversion.num_untrained_norms) == ('resnet50', 27)
    backbone = AdaptiveDepthResNet(50, init_cfg=dict(type='Pretrained', checkpoint=str(out)))
    with pytest.warns(UserWarning, match='27 skip-aware norms'):
        backbone.init_weights()


def test_mmdets_own_vd_names_stay(expected, paths):
    source, out = paths
    torch.save(expected, source)
    assert convert_checkpoint(source, out).renamed == {}
    assert holds(out, expected)


def changed(change):
    def content():
        weights = dict(authors_resnet('resnet50').state_dict())
        change(weights)
        return weights

    return content


def poison(value):
    return changed(lambda weights: weights['layer3.1.bn2_skip.running_var'].fill_(value))


REFUSED = {
    'NaN': (poison(float('nan')), 'layer3.1.bn2_skip.running_var holds NaN or infinity'),
    'infinity': (poison(float('inf')), 'layer3.1.bn2_skip.running_var holds NaN or infinity'),
    'another split': (
        lambda: authors_resnet('resnet101', mandatory=(2, 2, 18, 2)).state_dict(),
        r'\[2, 2, 18, 2\] mandatory blocks a stage, but this AdaptiveDepthResNet has \[2, 2, 12, 2\]',
    ),
    'ResNet-18': (lambda: torchvisions(resnet.resnet18), r'\[2, 2, 2, 2\] blocks a stage: known are resnet50, '),
    'ResNet-34': (lambda: torchvisions(resnet.resnet34), r'layer1.0.conv1.weight has shape \(64, 64, 3, 3\)'),
    'wide': (
        lambda: torchvisions(resnet.wide_resnet50_2),
        r'conv1.weight has shape \(64, 3, 7, 7\), but resnet50 has \(128, 3, 7, 7\)',
    ),
    'no ResNet': (lambda: nn.Sequential(nn.Linear(1, 1)).state_dict(), 'holds no ResNet .*0.weight, 0.bias'),
    'no tensors': (dict, 'holds no ResNet .*no tensors'),
    'two ResNets': (
        lambda: {
            f'{net}.{key}': value for net in 'ab' for key, value in authors_resnet('resnet50').state_dict().items()
        },
        r'holds 2 ResNets \(a., b.\)',
    ),
    'a weight less': (changed(lambda weights: weights.pop('bn1.weight')), r'resnet50, but lacks bn1.weight \(1 '),
    'a weight more': (changed(lambda weights: weights.update({'se.weight': torch.zeros(1)})), 'beyond that, se.weight'),
    'an integer': (
        changed(lambda weights: weights.update({'bn1.weight': torch.ones(8).int()})),
        'is of torch.int32, but',
    ),
    'a skip norm less': (
        changed(lambda weights: weights.pop('layer2.0.bn2_skip.bias')),
        'lacks layer2.0.bn2_skip.bias',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_refused(case, paths):
    source, out = paths
    content, message = REFUSED[case]
    torch.save(content(), source)
    with pytest.raises(UserError, match=message) as error:
        convert_checkpoint(source, out)
    assert str(error.value).startswith(f'{source}: ') and '\n' not in str(error.value)
    assert sorted(os.listdir(out.parent)) == ['source.pth']


@pytest.fixture
def main():
    return load_tool('convert_checkpoint').main


def test_names_in_a_file_are_no_markup(main, vd, paths, capsys):
    source, out = paths
    backbone = {f'backbone.{key}': value for key, value in vd.state_dict().items()}
    torch.save({'neck.[/x]': torch.zeros(1), **backbone}, source)
    assert main([str(source), str(out), '--arch', 'resnet50vd']) == 0, capsys.readouterr().err
    assert '[/x]' in capsys.readouterr().out


def test_command(main, vd, paths, capsys):
    source, out = paths
    torch.save(training_script(vd.state_dict(), AveragedModel(vd).state_dict()), source)
    assert main([str(source), str(out), '--ema', '--arch', 'resnet50vd']) == 0
    printed = capsys.readouterr().out
    for part in ('resnet50vd', 'moving average', 'n_averaged', 'layer1.0.downsample.0.weight', str(out.name)):
        assert part in printed.replace('\n', ''), printed
    out.write_text('something older')  # replaced, as mmdet's tools do
    assert main([str(source), str(out), '--no-ema']) == 0
    assert load_from_local(out)['meta']['ema'] is False


class Options(dict):
    """A class of somebody's script, which no allow-list knows."""


def test_trust_is_the_only_way_to_unpickle_more(main, vd, expected, paths, capsys):
    source, out = paths
    torch.save(dict(model=vd.state_dict(), args=Options(lr=1)), source)
    assert main([str(source), str(out)]) == 2
    error = capsys.readouterr().err
    assert 'Options' in error and '--trust' in error and not out.exists()
    assert main([str(source), str(out), '--trust']) == 0
    assert holds(out, expected)


@pytest.mark.parametrize(
    'content', [b'', b'<!DOCTYPE html><html>not found</html>', b'PK\x03\x04 and then nothing'], ids=repr
)
@pytest.mark.parametrize('trust', [[], ['--trust']], ids=str)
def test_command_with_what_is_no_checkpoint(main, content, trust, paths, capsys):
    source, out = paths
    source.write_bytes(content)
    assert main([str(source), str(out), *trust]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {source} is ') and error.count('\n') == 1 and 'download it again' in error
    assert not out.exists()


def test_command_with_other_mistakes(main, vd, paths, capsys):
    source, out = paths
    torch.save(vd.state_dict(), source)
    whole = source.read_bytes()
    for argv, message in (
        ([str(out), str(source)], 'there is no checkpoint'),
        ([str(source), str(source)], 'is the source: give another file'),
        ([str(source), str(out.parent)], 'is a folder: give the name of a file'),
        ([str(source), str(source / 'out.pth')], 'cannot write to'),
        ([str(source), str(out), '--arch', 'resnet101vd'], 'holds resnet50vd, not resnet101vd'),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1
    assert source.read_bytes() == whole and not out.exists()
    source.write_bytes(whole[: len(whole) // 2])
    assert main([str(source), str(out)]) == 2
    assert 'incomplete' in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(main, vd, paths, capsys, monkeypatch):
    source, out = paths
    torch.save(vd.state_dict(), source)
    out.write_text('older')
    monkeypatch.setattr(
        os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left on device'))
    )
    assert main([str(source), str(out)]) == 2
    assert f'cannot write {out} (No space left on device): make room' in capsys.readouterr().err
    assert out.read_text() == 'older' and sorted(os.listdir(out.parent)) == ['out.pth', 'source.pth']
