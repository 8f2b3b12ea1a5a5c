import csv
import json
import os
import re

import pytest
from conftest import DEMO_CONFIG
from mmdet.datasets import CocoDataset
from tiny import load_tool

from adn_mmdet import UserError
from adn_mmdet.results.compare import PAPER_FILES, PAPER_MODELS, compare, describe_choice, write_comparison
from adn_mmdet.results.intervals import without_draws
from adn_mmdet.results.rows import point_of

ADN, R50 = 'mask_rcnn_r50_adn_1x_coco', 'mask_rcnn_r50_1x_coco'
AP = dict(FFFF=0.383, TFFF=0.375, TTFF=0.376, TTTT=0.341)
GMACS = dict(FFFF=259.79, TFFF=255.33, TTFF=246.42, TTTT=228.60)
MS = dict(FFFF=52.0, TFFF=50.0, TTFF=47.5, TTTT=44.0)


def put_run(folder, name=ADN, ap=AP, **about):
    """Write a ``sub_nets.json``; with a number as ``ap`` that of a net without depths."""
    run = dict(name=name, config=f'configs/{name}.py', checkpoint_sha256=name, annotations_sha256='f' * 64,
               classes=list(CocoDataset.METAINFO['classes']), num_images=5000, input_size=[800, 1280])  # fmt: skip
    aps = ap if isinstance(ap, dict) else {None: ap}
    rows = [dict(skip=code, bbox_mAP=value, segm_mAP=None if value is None else value - 0.04, params_held_m=44.4,
                 gmacs=GMACS[code or 'FFFF']) for code, value in aps.items()]  # fmt: skip
    folder.mkdir()
    (folder / 'sub_nets.json').write_text(json.dumps(dict(schema=1, run=run | about, rows=rows)))
    return folder


def put_latency(path, name=ADN, ms=MS, **about):
    run = dict(name=name, config=f'configs/{name}.py', checkpoint_sha256=None, device='some GPU', threads=4,
               batch_size=1, input_size=[800, 1280], amp=False, channels_last=False, compile=False)  # fmt: skip
    times = ms if isinstance(ms, dict) else {None: ms}
    rows = [dict(skip=code, ms=value, ms_p90=value + 1) for code, value in times.items()]
    path.write_text(json.dumps(dict(schema=1, kind='latency', run=run | about, rows=rows)))
    return path


@pytest.fixture
def adn(tmp_path):
    return put_run(tmp_path / 'adn')


def rows_of(content, kind):
    return {row['skip']: row for row in content['rows'] if row['kind'] == kind}


def test_runs_latency_and_paper_are_joined(adn, tmp_path):
    net = put_run(tmp_path / 'r50', R50, 0.374)
    times = [put_latency(tmp_path / 'a.json'), put_latency(tmp_path / 'b.json', R50, 51.8, checkpoint_sha256=R50)]
    content = compare([adn, net / 'sub_nets.json'], times)
    assert [run['name'] for run in content['runs']] == [ADN, R50]
    assert [(row['skip'], row['bbox_mAP'], row['ms']) for row in content['rows'][:4]] == [
        (code, AP[code], MS[code]) for code in AP
    ]
    (individual,) = rows_of(content, 'individual').values()
    assert (individual['run'], individual['skip'], individual['ms'], individual['ms_p90']) == (R50, None, 51.8, 52.8)
    assert not any(key.startswith('front') for key in individual)
    for axes in ('bbox_mAP_gmacs', 'segm_mAP_ms'):  # TTFF is cheaper and better than TFFF
        flags = [row[f'front_{axes}'] for row in rows_of(content, 'adn').values()]
        assert flags == [True, False, True, True]
    published = rows_of(content, 'paper')
    assert (published['FFFF']['bbox_mAP'], published['TTTT']['segm_mAP']) == (0.383, 0.312)
    assert 'Table 5' in content['paper'] and content['choice'] is None


def test_latency_of_some_depths_and_of_two_runs_of_one_config(adn, tmp_path):
    other = put_run(tmp_path / 'other', checkpoint_sha256='other')
    content = compare([adn, other], [put_latency(tmp_path / 'a.json', ms=dict(TTTT=44.0, TFTF=48.0))])
    assert [row.get('ms') for row in content['rows'][:8]] == [None, None, None, 44.0] * 2  # measured without weights
    assert [run['name'] for run in content['runs']] == [f'{ADN} ({adn})', f'{ADN} ({other})']
    content = compare([adn, other], [put_latency(tmp_path / 'a.json', checkpoint_sha256='other')])
    assert ['ms' in row for row in content['rows'][:8]] == [False] * 4 + [True] * 4


def test_runs_of_two_sizes_say_so(adn, tmp_path):
    small = put_run(tmp_path / 'small', input_size=[400, 640])
    content = compare([adn, small])
    assert [run['name'] for run in content['runs']] == [f'{ADN} at 800×1280', f'{ADN} at 400×640']
    assert [row['input_size'] for row in content['rows'][3:5]] == [[800, 1280], [400, 640]]


@pytest.mark.parametrize(
    ('cost', 'limit', 'code', 'said'),
    [
        ('ms', 48, 'TTFF', 'Ship TTFF of .* for a budget of 48 ms: box AP 37.60 at 47.50 ms; -0.70 AP and -4.50 ms'),
        ('gmacs', 255.33, 'TTFF', 'box AP 37.60 at 246.42 GMACs; -0.70 AP and -13.37 GMACs against FFFF'),
        ('gmacs', 1000, 'FFFF', 'box AP 38.30 at 259.79 GMACs; [+]0.00 AP'),
    ],
)
def test_choice(adn, tmp_path, cost, limit, code, said):
    net = put_run(tmp_path / 'r50', R50, 0.5)  # better, but no depth of an any-depth net
    choice = compare([adn, net], [put_latency(tmp_path / 'a.json')], budget=(cost, limit))['choice']
    known = dict(FFFF=MS, TTFF=MS) if cost == 'ms' else dict(FFFF=GMACS, TTFF=GMACS)
    own = {'point': code, 'skip': code, 'size': None, 'proposals': None}
    assert choice['sub_net'] == {'run': ADN, **own, 'bbox_mAP': AP[code], cost: known[code][code]}
    assert choice['super_net']['skip'] == 'FFFF'
    assert re.search(said, describe_choice(choice))


def test_choice_by_masks_and_without_the_super_net(tmp_path):
    run = put_run(tmp_path / 'adn', ap=dict(TFFF=0.375, TTTT=0.341))
    choice = compare([run], metric='segm_mAP', budget=('gmacs', 300))['choice']
    assert choice['sub_net']['segm_mAP'] == 0.335 and choice['super_net'] is None
    assert 'mask AP 33.50' in describe_choice(choice) and 'not known' in describe_choice(choice)


def test_no_choice(adn, tmp_path):
    for budget, message in [
        (('gmacs', 200), f'no sub-network fits a budget of 200 GMACs: the cheapest, TTTT of {ADN}, takes 228.6 GMACs'),
        (('ms', 40), 'a budget in ms needs the latency of a run that has depths'),
    ]:
        with pytest.raises(UserError, match=message):
            compare([adn], budget=budget)
    with pytest.raises(UserError, match='no sub-network to choose from'):
        compare([put_run(tmp_path / 'r50', R50, 0.374)], budget=('gmacs', 300))
    with pytest.raises(UserError, match='no run has a box AP'):
        compare([put_run(tmp_path / 'empty', ap=dict(FFFF=None))], paper=[], budget=('gmacs', 300))


def test_which_rows_of_the_paper(adn, tmp_path):
    faster = put_run(tmp_path / 'faster', 'faster_rcnn_r50_adn_1x_coco')
    assert {row['run'].split(',')[1] for row in compare([adn, faster])['rows'] if row['kind'] == 'paper'} == {
        ' Faster R-CNN',
        ' Mask R-CNN',
    }
    assert compare([adn], paper=[])['paper'] is None
    assert len(rows_of(compare([adn], paper=['faster_rcnn']), 'paper')) == 3
    for name in ('mask_rcnn_r101_adn_1x_coco', 'mask_rcnn_r50_adn_shapes', 'cascade_r50_coco'):
        assert compare([put_run(tmp_path / name, name)])['paper'] is None
    part = put_run(tmp_path / 'part', num_images=200)
    assert compare([part])['paper'] is None
    with pytest.raises(UserError, match='--paper mask_rcnn: the paper tested on .* on 200 images and 80 classes'):
        compare([part], paper=['mask_rcnn'])


def test_costs_of_another_size_are_named_and_not_drawn(tmp_path, monkeypatch):
    """RetinaNet's GMACs in the paper are those at 800×800."""
    drawn = []
    monkeypatch.setattr('adn_mmdet.results.compare.plot_accuracy_against_cost', lambda rows, *_: drawn.append(rows))
    for size, is_drawn in (([800, 1280], False), ([800, 800], True)):
        name = f'retinanet{size[1]}'
        run = put_run(tmp_path / name, 'retinanet_r50_adn_1x_coco', input_size=size)
        content = compare([run])
        super_net = rows_of(content, 'paper')['FFFF']
        assert super_net['gmacs'] == 151.54 and ('(GMACs at 800×800)' in super_net['run']) is not is_drawn
        write_comparison(content, tmp_path)
        gmacs = [row['gmacs'] for row in drawn[-1] if row['kind'] == 'paper' and row['skip']]
        assert gmacs == ([151.54, 132.04] if is_drawn else [None, None])


def test_numbers_of_the_paper():
    """Shares of the costs, as 4.456 GMACs a skipped block of seven at 800×1280."""
    rows = json.loads(PAPER_FILES[0].read_text())['rows']
    assert len(rows) == 12 and all(row['input_size'] == [800, 1280] for row in rows[:8])
    for super_net, base_net in zip(rows[:8:2], rows[1:8:2]):
        assert super_net['gmacs'] - base_net['gmacs'] == pytest.approx(7 * 4.456, rel=0.01)
        assert super_net['bbox_mAP'] > base_net['bbox_mAP']


def put_classifier(folder, name='resnet50_adn_in1k', num_images=50000, **about):
    """Write the ``sub_nets.json`` of a classifier."""
    run = dict(name=name, checkpoint_sha256=name, annotations_sha256=None, classes=[f'{i}' for i in range(1000)],
               num_images=num_images, input_size=[224, 224])  # fmt: skip
    rows = [dict(skip='FFFF', top1=0.7612, top5=0.9301, gmacs=4.11), dict(skip='TTTT', top1=0.75, top5=0.9, gmacs=2.58)]
    folder.mkdir()
    (folder / 'sub_nets.json').write_text(json.dumps(dict(schema=1, run=run | about, rows=rows)))
    return folder


def test_classifiers_beside_the_papers_tables(tmp_path):
    run = put_classifier(tmp_path / 'a')
    content = compare([run], budget=('gmacs', 3))
    assert content['metric'] == 'top1' and 'Tables 1, 3' in content['paper'] and 'Table 5' not in content['paper']
    published = [row for row in content['rows'] if row['kind'] == 'paper']
    adn = {row['skip']: row for row in published if row['run'] == 'paper, ResNet-50, ADN'}
    assert [adn[code]['top1'] for code in ('FFFF', 'TFFF', 'TTFF', 'TTTT')] == [0.776, 0.771, 0.765, 0.761]
    assert adn['FFFF']['epoch_minutes'] == 54.7 and len(published) == 14
    assert '75.00 at 2.58 GMACs; -1.12 accuracy and -1.53 GMACs' in describe_choice(content['choice'])
    write_comparison(content, tmp_path)
    text = (tmp_path / 'compare.md').read_text()
    assert (
        '50000 images; accuracy in percent' in text
        and '| 76.12 | 93.01 |' in text
        and (tmp_path / 'compare.png').stat()
    )


def test_which_tables_belong_to_which_classifier(tmp_path, adn):
    vit = put_classifier(tmp_path / 'vit', 'vit-b32_adn_in1k')
    assert {row['run'].split(',')[1] for row in compare([vit])['rows'] if row['kind'] == 'paper'} == {' ViT-B/32'}
    assert compare([put_classifier(tmp_path / 'other', 'resnet50_adn_fashion_mnist')])['paper'] is None
    assert compare([put_classifier(tmp_path / 'part', num_images=500)])['paper'] is None
    with pytest.raises(UserError, match='--paper resnet50: the paper tested on the 50000 images .* on 500 images and'):
        compare([tmp_path / 'part'], paper=['resnet50'])
    with pytest.raises(
        UserError, match='--paper swin-t: the paper tested on the 50000 .* on 5000 images and 80 classes'
    ):
        compare([adn], paper=['swin-t'])
    assert set(PAPER_MODELS) == {key for path in PAPER_FILES for key in json.loads(path.read_text())['configs']}


@pytest.mark.parametrize(
    ('about', 'message'),
    [
        (dict(classes=['cell']), r'they differ in classes \(person and cell\)'),
        (dict(num_images=200), r'they differ in num_images \(5000 and 200\)'),
        (dict(annotations_sha256='e' * 64), r'they differ in annotations_sha256 \(ffff.* and eeee'),
    ],
)
def test_runs_on_other_data(adn, tmp_path, about, message):
    other = put_run(tmp_path / 'other', R50, 0.3, **about)
    with pytest.raises(UserError, match=message) as caught:
        compare([adn, other])
    assert str(adn) in str(caught.value) and str(other) in str(caught.value)


def test_latency_that_does_not_belong(adn, tmp_path):
    path = tmp_path / 'a.json'
    for arguments, message in [
        (dict(name=R50), f'a.json is the latency of {R50}, which none of the runs is .{ADN}.'),
        (dict(checkpoint_sha256='0123456789abcdef'), 'with the weights 0123456789ab…, which none of the runs is'),
        (dict(input_size=[400, 640]), 'measured at 400×640, but .* tested at 800×1280: .* --shape 800 1280'),
        (dict(ms=dict(TFTF=1)), 'has none of the depths in'),
    ]:
        put_latency(path, **arguments)
        with pytest.raises(UserError, match=message):
            compare([adn], [path])


def test_latency_files_that_do_not_go_together(adn, tmp_path):
    first, second = put_latency(tmp_path / 'a.json'), tmp_path / 'b.json'
    put_latency(second)
    with pytest.raises(UserError, match=f'b.json is a second latency file of {ADN}'):
        compare([adn], [first, second])
    for key, value in dict(device='CPU', threads=8, batch_size=2, amp=True, channels_last=True, compile=True).items():
        put_latency(second, **{key: value})
        with pytest.raises(UserError, match=f'a.json and .*b.json cannot be compared: they differ in {key}'):
            compare([adn], [first, second])


def test_latency_on_other_images_is_another_one(tmp_path):
    """What is detected decides the time; where the same images lie does not."""
    runs = put_run(tmp_path / 'adn'), put_run(tmp_path / 'r50', R50, 0.374)
    first = put_latency(tmp_path / 'a.json', images=dict(source='a', number=20, sha256='01'))
    second = put_latency(tmp_path / 'b.json', R50, 50.0, images=dict(source='b', number=20, sha256='01'))
    assert compare(runs, [first, second])['latency'][1]['images']['source'] == 'b'
    for images in (dict(source='noise', number=0, sha256=None), dict(source='a', number=20, sha256='02')):
        put_latency(second, R50, 50.0, images=images)
        with pytest.raises(UserError, match='cannot be compared: they differ in images_sha256'):
            compare(runs, [first, second])
    for images in (5, [], dict(sha256=5)):
        put_latency(second, R50, 50.0, images=images)
        with pytest.raises(UserError, match='run has the images'):
            compare(runs, [first, second])


def test_command(adn, tmp_path, capsys):
    """The whole way, from files to files."""
    main, out = load_tool('compare').main, tmp_path / 'out'
    net, times = put_run(tmp_path / 'r50', R50, 0.374), put_latency(tmp_path / 'a.json')
    assert main([str(adn), str(net), '--latency', str(times), '--budget-ms', '48', '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    assert (
        'Ship TTFF' in printed
        and '47.50*' in printed
        and 'some GPU, 4 threads, measured with untrained weights)' in ' '.join(printed.split())
    )
    assert max(map(len, printed.split('Ship')[0].splitlines())) <= 80
    content = json.loads((out / 'compare.json').read_text())
    assert (content['schema'], content['kind'], content['choice']['sub_net']['skip']) == (1, 'comparison', 'TTFF')
    with open(out / 'compare.csv', newline='') as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(content['rows']) == 9
    assert float(table[2]['bbox_mAP']) == 0.376 and table[2]['front_bbox_mAP_ms'] == 'True' and table[4]['skip'] == ''
    text = (out / 'compare.md').read_text()
    assert f'| {ADN} | TTFF | 37.60 | 33.60 | -0.70 | 246.42* | 47.50* | +1.66  | 44.40 |' in text
    assert f'| {R50} | – | 37.40 | 33.40 | – | 259.79  | – | – | 44.40 |' in text
    assert 'Ship TTFF' in text and '![AP against cost](compare.png)' in text and 'arXiv 2312.16392' in text
    assert (out / 'compare.png').stat().st_size > 20000


def test_files_of_the_other_scripts(trained, tiny_options, tmp_path, capsys):
    """What tools/test.py and tools/benchmark.py write is what is read."""
    checkpoint, times = str(trained / 'iter_4.pth'), str(tmp_path / 'times.json')
    argv = [DEMO_CONFIG, checkpoint, '--skip', 'TTTT']
    assert load_tool('test').main([*argv, '--work-dir', str(tmp_path), *tiny_options]) == 0
    assert load_tool('benchmark').main(['latency', *argv, '--rounds', '2', '--json', times, *tiny_options]) == 0
    argv = [str(tmp_path), '--latency', times, '--budget-ms', '1e9', '--out', str(tmp_path)]
    capsys.readouterr()
    assert load_tool('compare').main(argv) == 0, capsys.readouterr().err
    tested, content = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('sub_nets', 'compare'))
    timed = json.loads((tmp_path / 'times.json').read_text())
    of_points = {point_of(row): row for row in timed['rows']}  # FFFF is timed beside the others
    for row, of_test in zip(content['rows'], tested['rows'], strict=True):
        of_benchmark = of_points[point_of(of_test)]
        assert row.items() >= without_draws({**of_test, **of_benchmark}).items()
        assert not any(key.endswith('_resampled') for key in row)
    assert content['paper'] is None and content['latency'][0]['device'] == timed['run']['device']


def test_command_says_what_is_wrong_in_one_line(adn, tmp_path, capsys):
    main = load_tool('compare').main
    for argv in ([tmp_path / 'none'], [adn, '--budget-gmacs', 'nan'], [adn, '--out', adn / 'sub_nets.json']):
        assert main([*map(str, argv), *([] if '--out' in argv else ['--out', str(tmp_path)])]) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: ') and error.count('\n') == 1


def test_no_ap_at_all_is_a_table_without_a_picture(tmp_path):
    run = put_run(tmp_path / 'adn', ap=dict(FFFF=None))
    (tmp_path / 'compare.png').write_bytes(b'of an earlier comparison')
    write_comparison(compare([run], paper=[]), tmp_path)
    assert not (tmp_path / 'compare.png').exists() and 'png' not in (tmp_path / 'compare.md').read_text()


def test_a_latency_file_adds_times_and_nothing_else(adn, tmp_path):
    path = put_latency(tmp_path / 'a.json')
    content = json.loads(path.read_text())
    for row in content['rows']:
        row |= dict(
            bbox_mAP=0.99, gmacs=1.0, kind=None, run=None, input_size=None, front_bbox_mAP_ms=1, backbone_ms=9.0
        )
    path.write_text(json.dumps(content))
    with_latency, without = compare([adn], [path]), compare([adn])
    for row, other in zip(with_latency['rows'][:4], without['rows'], strict=False):
        assert row.items() >= {key: other[key] for key in ('run', 'kind', 'input_size', 'bbox_mAP', 'gmacs')}.items()
        assert row['backbone_ms'] == 9.0 and row['front_bbox_mAP_ms'] in (True, False)


def test_a_tested_row_says_nothing_of_its_time_or_its_run(adn, tmp_path):
    path = adn / 'sub_nets.json'
    content = json.loads(path.read_text())
    for row in content['rows']:
        row |= dict(ms=1.0, kind=None, run=None, input_size=None)
    path.write_text(json.dumps(content))
    content = compare([adn])
    write_comparison(content, tmp_path)
    assert {(row['run'], row['kind']) for row in content['rows'][:4]} == {(ADN, 'adn')}
    assert not any('ms' in row for row in content['rows'][:4])


def add_run(folder, **about):
    """Put another run into a ``sub_nets.json``, as the one that was tested last."""
    path = folder / 'sub_nets.json'
    content = json.loads(path.read_text())
    older = {key: content[key] for key in ('run', 'rows')}
    content |= dict(run=content['run'] | about, other_runs=[older, *content.get('other_runs', ())])
    path.write_text(json.dumps(content))


def test_all_runs_of_a_file_on_the_same_data_are_shown_and_named_apart(adn, tmp_path):
    for about in (
        dict(norms_sha256='1234567890'),
        dict(checkpoint_sha256='abcdefghij', norms_sha256=None),
        dict(settings_sha256='0987654321'),
        dict(comment='again'),
        dict(num_images=2),
    ):
        add_run(adn, **about)
    other = put_run(tmp_path / 'other', R50, 0.374)
    content = compare([adn, other])
    weights = f'{ADN}, weights abcdefgh, settings'
    assert [run['name'] for run in content['runs']] == [
        f'{weights} 09876543, 1',
        f'{weights} 09876543, 2',
        f'{weights} None',
        f'{ADN}, weights {ADN[:8]}, norms 12345678',
        f'{ADN}, weights {ADN[:8]}, norms None',
        R50,
    ]
    assert len({row['run'] for row in content['rows'] if row['kind'] != 'paper'}) == 6
    assert [(run['name'], run['num_images']) for run in content['left_out']] == [(ADN, 2)]
    write_comparison(content, tmp_path)
    assert f'not shown, since on other data: {ADN} (2 images).' in (tmp_path / 'compare.md').read_text()


def test_a_file_of_no_run_on_the_data_of_another(adn, tmp_path):
    other = put_run(tmp_path / 'other', num_images=2)
    add_run(other, num_images=3)
    with pytest.raises(UserError, match='cannot be compared: they differ in num_images .5000 and 3'):
        compare([adn, other])
    add_run(adn, num_images=2)
    assert {run['num_images'] for run in compare([adn, other])['runs']} == {2}


@pytest.mark.parametrize('limit', ['nan', 'inf', '-inf', '0', '-1', '1e400'])
def test_budgets_that_are_none(adn, tmp_path, capsys, limit):
    argv = [str(adn), f'--budget-gmacs={limit}', '--out', str(tmp_path / 'out')]
    assert load_tool('compare').main(argv) == 2
    assert re.match('error: a budget should be a positive number of GMACs, but got .*\n$', capsys.readouterr().err)
    assert not any((tmp_path / 'out').iterdir())


@pytest.mark.parametrize('name', ['[/x]', '[red]a', ':smile:', 'a|b', '$', '`<b>', '\x1b[2J', 'a\nb', '名' * 300])
def test_names_from_files_are_no_markup(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr('adn_mmdet.results.compare.plot_accuracy_against_cost', lambda *_: b'')
    run = put_run(tmp_path / 'adn', name)
    times = put_latency(tmp_path / 'a.json', name, device=name)
    argv = [str(run), '--latency', str(times), '--budget-ms', '48', '--out', str(tmp_path / 'out')]
    assert load_tool('compare').main(argv) == 0, capsys.readouterr().err
    shown = ''.join(letter if letter.isprintable() else '?' for letter in name)[:200]
    printed = capsys.readouterr().out
    assert '\x1b' not in printed and f'Ship TTFF of {shown} for' in printed
    rows = [line for line in (tmp_path / 'out/compare.md').read_text().splitlines() if line.startswith('|')]
    assert len(rows) == 6 and len({len(re.findall(r'(?<!\\)\|', line)) for line in rows}) == 1
    put_latency(times, f'other {name}', device=name)  # now in an error's line
    assert load_tool('compare').main(argv) == 2
    assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('name', ['compare.json', 'compare.csv', 'compare.md', 'compare.png'])
def test_a_folder_where_a_file_goes(adn, tmp_path, capsys, name):
    out = tmp_path / 'out'
    (out / name).mkdir(parents=True)
    assert load_tool('compare').main([str(adn), '--out', str(out)]) == 2
    assert re.match(f'error: .*{name} is a folder.*\n$', capsys.readouterr().err)
    assert [path.name for path in out.iterdir()] == [name]


def test_a_full_disk_leaves_the_comparison_that_was_there(adn, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    out.mkdir()
    write_comparison(compare([adn]), out)
    before, calls = {path.name: path.read_bytes() for path in out.iterdir()}, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError):
        write_comparison(compare([adn], metric='segm_mAP'), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
