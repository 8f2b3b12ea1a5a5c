from itertools import islice

import pytest
from benchmarks.one_pass import detect_a_fixed_number, initialize, one_pass_calls, time_one_pass
from test_backbones.test_sharing import count_runs
from tiny import build, tiny_config

from adn_mmdet import OperatingPoint, SkipConfig
from adn_mmdet.cost.images import TimedImages

CODES = [SkipConfig.parse(code) for code in ('FFFF', 'FFTT', 'TTTT')]


@pytest.mark.parametrize('kind', ['faster_rcnn', 'retinanet'])
def test_what_is_timed(kind):
    cfg = tiny_config(kind)
    detect_a_fixed_number(cfg)
    detector = build(cfg).eval()
    images = list(islice(TimedImages().batches((64, 64)), 2))
    initialize(detector, images)
    points, batches = OperatingPoint.product(CODES), [{None: batch} for batch in images]
    mean = dict(detector.named_buffers())['backbone.layer1.0.bn1_skip.running_mean']
    assert mean.abs().max() > 0
    runs = count_runs(detector)
    found = {}
    for name, call in one_pass_calls(detector, points, batches).items():
        runs.clear()
        found[name] = [call(), call()], runs['block'], runs['stem']
    blocks = 2 * (16 + 12 + 9), 2 * (16 + 3 + 2 + 9)  # FFFF, FFTT, TTTT: apart, and what a common prefix leaves
    assert [value[1:] for value in found.values()] == [(blocks[0], 6), (blocks[1], 2)] * 2
    # Two batches one by one and in one pass: the same detections, as many as are kept at most.
    assert found['detector, one by one'][0] == found['detector, in one pass'][0]
    most = (cfg.model.test_cfg.get('rcnn') or cfg.model.test_cfg).max_per_img
    assert all(0 < number <= most * len(CODES) for number in found['detector, in one pass'][0])


def test_sizes_and_proposals(capsys):
    cfg = tiny_config()
    seconds, ratios = time_one_pass(
        cfg, None, 'FFFF,TTTT', None, (64, 96), 1, rounds=1, sizes='64,48', proposals='40,10'
    )
    assert '8 points' in capsys.readouterr().out
    assert len(seconds) == 4 and len(ratios) == 2 and all(value > 0 for value in seconds.values())
