"""A classifier from its training to its report, by the scripts, and what they say of what is broken."""

import json
import shutil

import pytest
from classifiers import CLASSES, CONFIG, make_images, small_config
from test_tools import fails
from tiny import load_tool

from adn_mmdet import SkipConfig


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The config, its images, and the work folder of a training of two steps."""
    folder = tmp_path_factory.mktemp('classifier')
    config = small_config(folder, make_images(folder / 'data'))
    assert load_tool('train').main([config, '--work-dir', str(folder / 'work')]) == 0
    return folder, config


def test_from_training_to_report(run, capsys):
    folder, config = run
    log = next((folder / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    steps = [line for line in map(json.loads, log) if 'loss' in line]
    assert len(steps) == 2 and {'super.loss', 'kd.loss_stage1', 'kd.loss_cls', 'kd.to_task'} <= steps[0].keys()
    assert steps[0]['loss'] == pytest.approx(sum(v for k, v in steps[0].items() if '.loss' in k), rel=1e-4)
    assert {'FFFF/accuracy/top1', 'TTTT/accuracy/top1'} <= json.loads(log[-1]).keys()  # validated at both
    checkpoint = str(folder / 'work' / 'epoch_1.pth')
    assert load_tool('test').main([config, checkpoint, '--skip', 'all', '--work-dir', str(folder / 'work')]) == 0
    content = json.loads((folder / 'work' / 'sub_nets.json').read_text())
    rows = {row['skip']: row for row in content['rows']}
    assert list(rows) == sorted(map(str, SkipConfig.all(4)))
    assert content['run']['classes'] == list(CLASSES) and content['run']['input_size'] == [32, 32]
    assert all(row['top1'] * 6 == pytest.approx(round(row['top1'] * 6)) for row in rows.values())  # shares of 6 images
    assert all(0 <= row['top1'] <= row['top2'] <= 1 for row in rows.values())
    assert rows['TTTT']['gmacs'] < rows['TFFF']['gmacs'] < rows['FFFF']['gmacs'] < 0.01
    assert load_tool('report').main([str(folder / 'work')]) == 0
    report = (folder / 'work' / 'report.md').read_text()
    assert '6 images; accuracy in percent; costs for one image of 32×32 px' in report
    assert (
        '| skip | top-1 | to FFFF (95 %) | GMACs | to a mix |' in report
        and (folder / 'work' / 'accuracy_cost.png').stat().st_size
    )
    out = str(folder / 'compare')
    assert load_tool('compare').main([str(folder / 'work'), '--budget-gmacs', '0.0015', '--out', out]) == 0
    assert 'top-1' in capsys.readouterr().out


def test_an_image_that_is_cut_off_is_named(run, tmp_path, capsys):
    folder, config = run
    shutil.copytree(folder / 'data', tmp_path / 'data')
    image = tmp_path / 'data' / 'val' / 'dog' / '1.png'
    image.write_bytes(image.read_bytes()[:500])
    options = ['--work-dir', str(tmp_path), '--cfg-options', f'test_dataloader.dataset.data_root={tmp_path}/data']
    argv = [config, str(folder / 'work' / 'epoch_1.pth'), *options]
    assert load_tool('test').main(argv) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f'error: cannot read the image {image} (it is no whole image): download it again'


def test_without_mmpretrain_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr('mmengine.config.config.is_installed', lambda name: False)
    message = "is a classifier's, for which mmpretrain is missing: pip install -e '.[cls]'"
    fails(load_tool('train').main, [str(CONFIG)], capsys, message)
