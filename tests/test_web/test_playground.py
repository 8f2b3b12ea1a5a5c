from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny import ROOT, build, narrow, small_images

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.cost.macs import count_costs_of_points
from adn_mmdet.inference import AnyDepthInferencer
from adn_mmdet.operating_point import OperatingPoint
from adn_mmdet.web import Playground


@pytest.fixture(scope='module')
def image(examples):
    return cv2.imread(str(examples[0]))


def test_positions_are_the_frontier(playground):
    assert list(map(str, playground.positions)) == ['TTTT@32/20', 'TTTT@64/20', 'FFFF@64/20']  # TTFF is worth nothing
    assert playground.accuracy_known and playground.sizes == (32, 64, 32) and playground.own.proposals == 20
    assert list(map(str, playground.codes)) == list(map(str, SkipConfig.all(4)))


def test_what_was_not_tested_is_counted(inferencer, image):
    playground = Playground(inferencer)
    costs = count_costs_of_points(inferencer.model, list(map(OperatingPoint, playground.codes)), inferencer.cfg)
    known = {str(code): cost.gmacs for code, cost in zip(playground.codes, costs)}
    found = [str(point.skip) for point in playground.positions]  # all depths
    assert found == sorted(found, key=known.get) and found[-1] == 'FFFF' and len(found) == 16
    look = playground.look(image, playground.point('TFTF'))
    assert look.gmacs == known['TFTF'] and look.accuracies == {} and not playground.accuracy_known


def test_a_look_has_what_the_inferencer_finds_and_what_the_file_says(playground, inferencer, image):
    look = playground.look(image, playground.point('TTTT', 32, 20), score=0)
    (found,) = inferencer(image, point='TTTT@32')['predictions']
    assert str(look.point) == 'TTTT@32/20' and look.num_found == len(found['scores']) > 0 and look.ms > 0
    assert look.picture.shape == image.shape and not np.array_equal(look.picture, image[..., ::-1])
    assert look.gmacs == 2.0 and look.accuracies == {'bbox_mAP': 0.25}
    assert np.array_equal(playground.look(image, look.point, score=1).picture, image[..., ::-1])  # nothing is drawn


def test_the_first_image_of_a_shape_is_detected_twice(playground, monkeypatch):
    calls = []
    monkeypatch.setattr(playground, 'inferencer', Counted(playground.inferencer, calls))
    for height in (40, 40, 48):
        playground.look(np.zeros((height, 50, 3), np.uint8), playground.point('TTTT'))
    assert calls == [40, 40, 40, 48, 48]


class Counted:
    def __init__(self, inferencer, calls):
        self.inferencer, self.calls = inferencer, calls

    def __call__(self, image, **kwargs):
        self.calls.append(len(image))
        return self.inferencer(image, **kwargs)

    def __getattr__(self, name):
        return getattr(self.inferencer, name)


@pytest.mark.parametrize(
    'controls, message',
    [
        (('TTT', 64, 20), "'TTT' is not a skip code"),
        (('TTTT', 96, 20), 'size can be 64 at most here, but got 96'),
        (('TTTT', 16, 20), 'size should be the short side of the input in pixels'),
        (('TTTT', 64, 21), 'proposals can be 20 at most here, but got 21'),
        (('TTTT', 64, 0), 'proposals should be the number of region proposals'),
    ],
)
def test_controls_that_a_page_would_not_send(playground, controls, message):
    with pytest.raises(UserError, match=message):
        playground.point(*controls)


def test_two_users_at_once_see_their_own_point(playground, examples):
    images = [cv2.imread(str(path)) for path in examples[:2]]
    points = [playground.point('TTTT', 32, 5), playground.point('FFFF', 64, 20)]
    wanted = [[playground.look(image, point, 0).picture for image in images] for point in points]
    assert not np.array_equal(wanted[0][0], wanted[1][0])
    jobs = [(image, point) for image in (0, 1) for point in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        looks = list(pool.map(lambda job: playground.look(images[job[0]], points[job[1]], 0), jobs))
    for (image, point), look in zip(jobs, looks):
        assert look.point == points[point] and np.array_equal(look.picture, wanted[point][image])


def test_codes_with_a_letter_a_part_and_no_proposals(tmp_path):
    cfg = small_images(narrow(Config.fromfile(ROOT / 'configs' / 'retinanet_r50_adn_tower_1x_coco.py')))
    cfg.model.bbox_head.stacked_convs = 4
    cfg.dump(tmp_path / 'tower.py')
    torch.save(dict(state_dict=build(cfg).state_dict()), tmp_path / 'tower.pth')
    inferencer = AnyDepthInferencer(tmp_path / 'tower.py', tmp_path / 'tower.pth', 'cpu', show_progress=False)
    playground = Playground(inferencer)
    assert len(playground.positions) == 32 and playground.own.proposals is None
    image = np.zeros((50, 60, 3), np.uint8)
    assert str(playground.look(image, playground.point('tfff-t', 32)).point) == 'TFFF-T@32'
    with pytest.raises(UserError, match='has no number of proposals to choose'):
        playground.look(image, playground.point('TFFF-T', 32, 10))


def test_results_of_other_weights_are_refused(inferencer, tmp_path, net):
    (tmp_path / 'sub_nets.json').write_text(
        open(net.results).read().replace('"checkpoint_sha256": "', '"checkpoint_sha256": "x')
    )
    with pytest.raises(UserError, match='was measured with other weights'):
        Playground(inferencer, tmp_path)
