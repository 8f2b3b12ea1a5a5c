import json
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import DEMO_CONFIG
from mmdet.apis import DetInferencer, init_detector
from mmengine.config import Config
from tiny import ROOT, load_tool

from adn_mmdet import SkipConfig
from adn_mmdet.checkpoints import load_from_local

COCO_CONFIG = str(ROOT / 'configs' / 'mask_rcnn_r50_adn_1x_coco.py')


@pytest.fixture(scope='module')
def test_main():
    return load_tool('test').main


@pytest.fixture
def checkpoint(trained):
    return str(trained / 'iter_4.pth')


def fails(main, argv, capsys, message):
    """A user's mistake: exit code 2 and one line that says what is wrong."""
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and 'Traceback' not in error
    assert error.count('\n') <= 2, error
    return error


def results(work_dir):
    return json.loads((work_dir / 'sub_nets.json').read_text())


def test_training_logs_every_loss(checkpoint):
    log = load_from_local(checkpoint)['message_hub']['log_scalars']
    assert {'train/super.loss_mask', 'train/base.loss_mask', 'train/kd.loss_p2', 'train/base.acc'} <= log.keys()
    assert len(log['train/loss'].data[0]) == 4


def test_resume_goes_on_where_it_stopped(trained, tiny_options, tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(trained / 'iter_2.pth'))
    options = [*tiny_options, 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None']
    argv = [DEMO_CONFIG, '--work-dir', str(tmp_path), '--resume', *options]
    assert load_tool('train').main(argv) == 0
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert [step in log for step in ('[1/4]', '[2/4]', '[3/4]', '[4/4]')] == [False, False, True, True]


def test_rows_of_several_depths(test_main, checkpoint, tiny_options, tmp_path, capsys):
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), *tiny_options]
    pictures, dump = tmp_path / 'pictures', tmp_path / 'found.pkl'
    capsys.readouterr()
    assert test_main([*argv, '--skip', 'FFFF,tttt', '--show-dir', str(pictures), '--out', str(dump)]) == 0
    assert 'mask AP' in capsys.readouterr().out
    first = results(tmp_path)
    assert first['schema'] == 2 and first['run']['name'] == 'mask_rcnn_r50_adn_shapes'
    assert first['run']['classes'] == ['circle', 'rectangle', 'triangle'] and first['run']['num_images'] == 6
    assert first['run']['input_size'] == [96, 96] and len(first['run']['checkpoint_sha256']) == 64
    super_net, base_net = first['rows']
    assert (super_net['skip'], base_net['skip']) == ('FFFF', 'TTTT')
    assert base_net['gmacs'] < super_net['gmacs'] and base_net['params_held_m'] == super_net['params_held_m']
    assert {'bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_AR@100'} <= super_net.keys()
    assert super_net['bbox_mAP_l'] is None  # no object of that size
    for code in ('FFFF', 'TTTT'):
        assert len(list((pictures / code).iterdir())) == 6
        assert len(pickle.loads((tmp_path / f'found_{code}.pkl').read_bytes())) == 6
    assert test_main([*argv, '--skip', 'TFFF,TTTT']) == 0
    assert [row['skip'] for row in results(tmp_path)['rows']] == ['FFFF', 'TFFF', 'TTTT']
    assert results(tmp_path)['rows'][0] == super_net and results(tmp_path)['rows'][2] == base_net
    other = checkpoint.replace('iter_4', 'iter_2')
    assert test_main([DEMO_CONFIG, other, '--work-dir', str(tmp_path), *tiny_options]) == 0
    assert [row['skip'] for row in results(tmp_path)['rows']] == ['FFFF']  # other weights: started anew


def test_the_depth_is_really_switched(test_main, checkpoint, tiny_options, tmp_path):
    """Predictions through the script are those of a detector that is stored at that depth."""
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), *tiny_options]
    for name, arguments in (('list', ['--skip', 'TTTT,FFFF']), ('one', ['--skip', 'TTTT'])):
        assert test_main([*argv, *arguments, '--out', str(tmp_path / f'{name}.pkl')]) == 0
    found = [pickle.loads((tmp_path / name).read_bytes()) for name in ('list_TTTT.pkl', 'list_FFFF.pkl', 'one.pkl')]
    boxes = [torch.cat([image['pred_instances']['bboxes'] for image in images]) for images in found]
    assert torch.equal(boxes[0], boxes[2]) and not torch.equal(boxes[0], boxes[1])
    dumped = str(tmp_path / 'mask_rcnn_r50_adn_shapes.py')  # reloads at the depth it was used with
    assert str(init_detector(dumped, checkpoint, device='cpu').backbone.skip) == 'TTTT'
    inferencer = DetInferencer(dumped, checkpoint, device='cpu', show_progress=False)
    image = found[2][0]
    predictions = inferencer(image['img_path'])['predictions'][0]
    assert predictions['bboxes'] == image['pred_instances']['bboxes'].tolist()


def test_an_average_of_weights_beside_it_changes_nothing(test_main, checkpoint, tiny_options, tmp_path):
    cfg = Config.fromfile(DEMO_CONFIG)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='EMAHook')]
    cfg.dump(tmp_path / 'average.py')
    rows = []
    for config in (DEMO_CONFIG, str(tmp_path / 'average.py')):
        work_dir = tmp_path / 'runs' / config.rpartition('/')[2]
        assert test_main([config, checkpoint, '--skip', 'FFFF,TTTT', '--work-dir', str(work_dir), *tiny_options]) == 0
        rows.append(results(work_dir)['rows'])
    assert rows[0] == rows[1]


def test_mmdets_own_test_script_reads_the_dumped_config(checkpoint, tiny_options, tmp_path):
    import mmdet

    script = f'{mmdet.__path__[0]}/.mim/tools/test.py'
    options = [*tiny_options, 'model.backbone.skip=TTTT']
    command = [sys.executable, script, DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'segm_mAP' in result.stdout + result.stderr


@pytest.mark.parametrize('code', ['TTT', 'TTXT', '', 'TTTTT', 'FFFF,TTT'])
def test_bad_codes(test_main, checkpoint, tiny_options, tmp_path, capsys, code):
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), '--skip', code, *tiny_options]
    fails(test_main, argv, capsys, 'such as FFFF (super-net) or TTTT (base-net)')
    assert not (tmp_path / 'sub_nets.json').exists()


def test_disagreeing_skips(test_main, checkpoint, tiny_options, tmp_path, capsys):
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), '--skip', 'TTTT', *tiny_options]
    fails(test_main, [*argv, 'model.backbone.skip=FFFF'], capsys, 'disagree')


def test_masks_have_no_augmentation(test_main, checkpoint, tiny_options, tmp_path, capsys):
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), '--tta', *tiny_options]
    fails(test_main, argv, capsys, 'no test-time augmentation for masks')


def box_options(tiny_options):
    """Turns the demo's Mask R-CNN into a Faster R-CNN."""
    return [*tiny_options, 'model.type=FasterRCNN', 'model.roi_head.mask_head=None',
            'model.roi_head.mask_roi_extractor=None', 'test_evaluator.metric=bbox']  # fmt: skip


def test_box_augmentation_at_a_depth(test_main, checkpoint, tiny_options, tmp_path):
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), '--allow-mismatch', *box_options(tiny_options)]
    found = []
    for arguments in (['--tta', '--skip', 'FFFF,TTTT'], ['--tta', '--skip', 'TTTT'], ['--skip', 'TTTT']):
        assert test_main([*argv, *arguments, '--out', str(tmp_path / 'found.pkl')]) == 0
        path = tmp_path / ('found_TTTT.pkl' if 'FFFF,TTTT' in arguments else 'found.pkl')
        images = pickle.loads(path.read_bytes())
        found.append(torch.cat([image['pred_instances']['bboxes'] for image in images]))
    assert torch.equal(found[0], found[1])
    assert found[0].shape != found[2].shape or not torch.equal(found[0], found[2])


def test_a_net_without_depths(test_main, checkpoint, tiny_options, tmp_path, capsys):
    stock = ['model.backbone.type=ShallowResNet', 'model.backbone.stage_blocks=(2,2,3,2)']
    cfg = Config.fromfile(DEMO_CONFIG)
    del cfg.model.backbone['skip']
    cfg.custom_hooks = []
    path = tmp_path / 'plain.py'
    cfg.dump(path)
    argv = [str(path), checkpoint, '--work-dir', str(tmp_path), *tiny_options, *stock]
    fails(test_main, argv, capsys, 'unexpected')
    fails(test_main, [*argv, '--skip', 'TTTT'], capsys, 'has no depth to choose')
    assert test_main([*argv, '--allow-mismatch']) == 0
    (row,) = results(tmp_path)['rows']
    assert row['skip'] is None and row['params_held_m'] == row['params_active_m']


def test_untrained_depths(test_main, checkpoint, tiny_options, tmp_path, capsys):
    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    plain = tmp_path / 'plain.pth'
    torch.save({key: value for key, value in weights.items() if '_skip' not in key}, plain)
    argv = [DEMO_CONFIG, str(plain), '--work-dir', str(tmp_path), '--skip', 'TTTT', *tiny_options]
    fails(test_main, argv, capsys, '--allow-untrained')
    assert test_main([*argv, '--allow-untrained']) == 0


def test_no_predictions_at_all_is_a_complete_row(test_main, checkpoint, tiny_options, tmp_path):
    options = [*tiny_options, 'model.test_cfg.rcnn.score_thr=2.0']
    assert test_main([DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), *options]) == 0
    (row,) = results(tmp_path)['rows']
    assert row['bbox_mAP'] == row['segm_mAP'] == 0 and row['bbox_mAP_l'] is None


def test_what_is_missing(test_main, checkpoint, tiny_options, tmp_path, capsys, elsewhere):
    argv = ['--work-dir', str(tmp_path), *tiny_options]
    fails(test_main, [DEMO_CONFIG, 'none.pth', *argv], capsys, 'there is no checkpoint none.pth')
    fails(test_main, [DEMO_CONFIG.replace('adn', 'and'), checkpoint], capsys, 'did you mean')
    fails(test_main, [COCO_CONFIG, checkpoint], capsys, 'there is no annotation file data/coco')
    fails(test_main, [DEMO_CONFIG, checkpoint, *argv, '--out', 'x.json'], capsys, '--out should be a .pkl file')
    train = load_tool('train').main
    error = fails(train, [COCO_CONFIG], capsys, 'there are no weights pretrained/resnet50_adn_imagenet.pth')
    assert 'adn_tv_1x_coco.py' in error
    fails(train, [COCO_CONFIG, '--cfg-options', 'model.backbone.init_cfg=None'], capsys, 'put COCO there')
    if not torch.cuda.is_available():
        fails(train, [DEMO_CONFIG, '--amp', *argv], capsys, '--amp needs a GPU')


def test_training_that_cannot_be_distilled_is_one_line(tiny_options, tmp_path, capsys):
    cfg = Config.fromfile(DEMO_CONFIG)
    cfg.custom_hooks = [dict(type='SkipAwareDistillationHook', levels=(0, 9))]
    path = tmp_path / 'levels.py'
    cfg.dump(path)
    argv = [str(path), '--work-dir', str(tmp_path), *tiny_options]
    fails(load_tool('train').main, argv, capsys, '4 (p6), but got [0, 9]')


def test_benchmark_prints_ratios(capsys):
    options = ['--shape', '32', '32', '--rounds', '2', '--skip', 'FFFF,TTTT', '--fused']
    assert load_tool('benchmark').main(['backbone', *options]) == 0
    printed = capsys.readouterr().out
    assert 'stock ResNet-50' in printed and 'TTTT, fused / TTTT' in printed and 'set_skip' in printed


def test_report(test_main, checkpoint, tiny_options, tmp_path, capsys):
    argv = [DEMO_CONFIG, checkpoint, '--work-dir', str(tmp_path), *tiny_options, 'test_dataloader.dataset.indices=2']
    report = load_tool('report').main
    fails(report, [str(tmp_path)], capsys, 'there is no')
    assert test_main([*argv, '--skip', 'all', '--show-dir', str(tmp_path / 'pictures')]) == 0
    assert report([str(tmp_path), '--pictures', str(tmp_path / 'pictures')]) == 0
    text = (tmp_path / 'report.md').read_text()
    assert all(f'| {code} |' in text for code in SkipConfig.all(4))
    for picture in ('accuracy_cost.png', 'predictions.png'):
        assert picture in text and (tmp_path / picture).stat().st_size > 5000
