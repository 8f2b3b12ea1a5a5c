"""A detector at an operating point detects what one whose config says so detects, to the bit, whoever else runs it."""

import copy
import pickle
import threading

import mmcv
import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample
from tiny import batch, build, narrow, small_images, stock_config, tiny_config

from adn_mmdet import OperatingPoint, UserError, set_point, using_point
from adn_mmdet.input_size import pipeline_at
from adn_mmdet.points import find_rpn, point_in_force


def config_of(name, proposals=20):
    """Levels have more candidates than the RPN looks at, and its NMS keeps more than 20."""
    cfg = cascade() if name == 'cascade_rcnn' else small_images(tiny_config(name))
    cfg.model.test_cfg.rpn.update(nms_pre=40, max_per_img=proposals)
    cfg.model.test_cfg.rcnn.update(max_per_img=20, score_thr=0.0)
    return cfg


def cascade():
    cfg = stock_config('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco')
    heads = cfg.model.roi_head.pop('bbox_head')
    cfg.model.roi_head.bbox_head = dict()
    cfg.model.backbone = tiny_config().model.backbone
    narrow(cfg)
    for head in heads:
        head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    cfg.model.roi_head.bbox_head = heads
    return cfg


@pytest.fixture
def images():
    torch.manual_seed(2)
    return torch.rand(2, 3, 128, 160)


def detect(detector, images, **run):
    """What is found in images, as tensors."""
    meta = dict(img_shape=tuple(images.shape[-2:]), ori_shape=(96, 120), scale_factor=(160 / 120, 128 / 96))
    samples = [DetDataSample(metainfo=meta) for _ in images]
    with torch.no_grad():
        found = detector(images, samples, mode='predict', **run)
    return [sample.pred_instances for sample in found]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and len(one) == len(other) > 0
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
    return True


@pytest.mark.parametrize(
    ('name', 'proposals'), [('faster_rcnn', 5), ('faster_rcnn', 60), ('mask_rcnn', 5), ('cascade_rcnn', 60)]
)
def test_proposals_are_those_of_a_config_that_says_so(name, proposals, images):
    """Fewer than the config's, and more; before, inside and after the block."""
    detector = build(config_of(name)).eval()
    own = detect(detector, images)
    expected = detect(build(config_of(name, proposals)).eval(), images)
    with using_point(detector, f'/{proposals}') as point:
        assert point == OperatingPoint(proposals=proposals)
        assert same(detect(detector, images), expected)
    assert same(detect(detector, images), own)
    set_point(detector, f'FFFF/{proposals}')
    assert same(detect(detector, images), expected)
    with using_point(detector, 'FFFF'):  # what is left out is the config's
        assert same(detect(detector, images), own)
    set_point(detector, 'FFFF')
    assert same(detect(detector, images), own)


def test_fewer_proposals_are_the_first_of_more(images):
    """The order by score over all levels, which those who share one run of the RPN rely on."""
    detector = build(config_of('faster_rcnn', 150)).eval()
    metas = [dict(img_shape=tuple(images.shape[-2:]))] * 2

    def propose(number):
        with torch.no_grad(), using_point(detector, f'/{number}'):
            outs = detector.rpn_head(detector.extract_feat(images))
            return detector.rpn_head.predict_by_feat(*outs, batch_img_metas=metas)

    for few, many in zip(propose(30), propose(150)):
        assert len(few) == 30 and len(many) > 40 and bool((many.scores.diff() <= 0).all())
        assert torch.equal(few.bboxes, many.bboxes[:30]) and torch.equal(few.scores, many.scores[:30])


def test_depth_and_proposals_together(images):
    detector = build(config_of('faster_rcnn')).eval()
    expected = build(config_of('faster_rcnn', 7)).eval()
    expected.backbone.set_skip('TFTT')
    with using_point(detector, 'TFTT/7'):
        assert same(detect(detector, images), detect(expected, images))
        assert point_in_force(detector) == OperatingPoint.parse('TFTT/7')
        with detector.backbone.using_skip('FFFF'):
            assert str(point_in_force(detector)) == 'FFFF/7'
    assert str(point_in_force(detector)) == 'FFFF'
    set_point(detector, 'TFTT/7')
    assert same(detect(detector, images), detect(expected, images))


def test_whoever_trains_keeps_his_own_number(images):
    """In training the RPN is given its settings by mmdet, and those stay."""
    detector, seen = build(config_of('faster_rcnn')), []
    detector.train_cfg.rpn_proposal.max_per_img = 33
    head = find_rpn(detector)
    post = head._bbox_post_process
    head._bbox_post_process = lambda *args, **kwargs: seen.append(kwargs['cfg'].max_per_img) or post(*args, **kwargs)
    with using_point(detector, '/5'):
        detector(**batch(detector), mode='loss')
    assert seen and set(seen) == {33}


def test_a_point_ends_with_its_block(images):
    detector = build(config_of('faster_rcnn')).eval()
    own = detect(detector, images)
    with pytest.raises(RuntimeError), using_point(detector, 'TTTT@64/5'):
        raise RuntimeError
    assert point_in_force(detector) == OperatingPoint.parse('FFFF') and same(detect(detector, images), own)

    def suspended():
        with using_point(detector, 'TTTT/5'):
            yield

    generator = suspended()
    next(generator)
    assert same(detect(detector, images), own)


def test_threads_never_mix(images):
    detector = build(config_of('faster_rcnn')).eval()
    points = ['FFFF', 'TTTT/5', 'FFFF/5', 'TTTT@64/60']
    expected, found, at_once = {}, {}, threading.Barrier(len(points))
    for point in points:
        with using_point(detector, point):
            expected[point] = detect(detector, images)

    def run(point):
        with using_point(detector, point):
            at_once.wait(30)
            found[point] = [detect(detector, images) for _ in range(2)]

    threads = [threading.Thread(target=run, args=(point,)) for point in points]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(one, expected[point]) for point in points for one in found[point])


def test_copies_and_pickles_keep_the_number_and_weights_fit_stock(images):
    detector = build(config_of('faster_rcnn')).eval()
    keys = list(detector.state_dict())
    with using_point(detector, '/5'):
        expected = detect(detector, images)
        copies = [copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))]
    for twin in copies:
        assert same(detect(twin, images), expected)
        assert type(twin.rpn_head).__name__ == 'RPNHead' and list(twin.state_dict()) == keys
        set_point(twin, 'FFFF/9')
    assert point_in_force(detector) == OperatingPoint.parse('FFFF')


def test_sizes_reach_mmdets_own_inference(shapes):
    """set_point changes the pipeline that mmdet makes of ``model.cfg``; the config that was given stays as it is."""
    cfg = config_of('faster_rcnn')
    detector = build(cfg).eval()
    with pytest.raises(UserError, match='FFFF@96: this FasterRCNN has no cfg whose test pipeline could be resized'):
        set_point(detector, 'FFFF@96')
    detector.cfg = cfg
    image = mmcv.imread(str(next((shapes / 'val').iterdir())))
    own = inference_detector(detector, image)
    set_point(detector, 'FFFF@96')
    found = inference_detector(detector, image)
    assert (own.img_shape, found.img_shape) == ((64, 64), (96, 96)) and point_in_force(detector).size == 96
    set_point(detector, 'FFFF@80')
    assert inference_detector(detector, image).img_shape == (80, 80)
    assert detector.cfg.test_dataloader.dataset.pipeline == pipeline_at(cfg, 80)
    set_point(detector, 'FFFF')
    assert same([inference_detector(detector, image).pred_instances], [own.pred_instances]) and detector.cfg is cfg


@pytest.mark.parametrize(
    ('name', 'kind', 'point', 'message'),
    [
        ('retinanet', 'adn', 'TTTT/300', 'RetinaNet has no number of proposals to choose, as two-stage detectors'),
        ('faster_rcnn', 'adn', 'TTT@640', "'TTT' is not a skip code: it has one letter a stage .4 in all"),
        ('faster_rcnn', 'base', 'TTTT', 'should have one adaptive-depth backbone'),
        ('faster_rcnn', 'adn', 'TTTT@9', 'size should be the short side'),
        ('faster_rcnn', 'adn', 640, '640 is not an operating point'),
    ],
)
def test_points_that_a_detector_cannot_run_at(name, kind, point, message):
    detector = build(tiny_config(name, kind))
    for put in (set_point, lambda *args: using_point(*args).__enter__()):
        with pytest.raises(UserError, match=message) as error:
            put(detector, point)
        assert '\n' not in str(error.value)


def test_query_based_detectors_have_no_proposals():
    cfg = stock_config('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco')
    cfg.model.backbone = tiny_config().model.backbone
    cfg.model.neck.update(in_channels=[32, 64, 128, 256], out_channels=256)
    cfg.model.roi_head.num_stages, cfg.model.roi_head.stage_loss_weights = 1, [1]
    del cfg.model.roi_head.bbox_head[1:]
    with pytest.raises(UserError, match='SparseRCNN has no number of proposals to choose'):
        set_point(build(cfg), '/100')
