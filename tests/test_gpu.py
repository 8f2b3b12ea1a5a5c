"""What must hold on a GPU: `make gpu-check` runs it. ADN_GPU_TESTS=cpu tries the checks themselves without one."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from steps import SETTINGS, furthest, gradients, raw_batch, reference_loss, watched_sgd
from tiny import build, small_images, tiny_config

from adn_mmdet import SkipConfig, compile_stages, extract_feats
from adn_mmdet.distillation import DistillationSettings, SelfDistillation
from adn_mmdet.evaluation import sharing
from adn_mmdet.export.sub_net import plain_detector

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get('ADN_GPU_TESTS', 'cuda')
GPU_ALONE = pytest.mark.skipif(DEVICE == 'cpu', reason='the CPU has no gradient scaler, SyncBN or NCCL')
DETECTORS = ('faster_rcnn', 'mask_rcnn')
HALVES = 'float16', 'bfloat16'
TOLERANCES = {'float32': 1e-4} | dict.fromkeys(HALVES, 2e-2)
CODES = SkipConfig.all(4)


@pytest.fixture(autouse=True)
def equal_algorithms():
    """cuDNN takes the same algorithm for the same shapes, so that equal inputs have equal outputs."""
    before = torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    (
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    ) = before


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group('gloo' if DEVICE == 'cpu' else 'nccl', f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def detector(name='faster_rcnn', **backbone):
    return build(small_images(tiny_config(name, **backbone))).to(DEVICE)


def optimizer_wrapper(optimizer, precision):
    if precision == 'float32':
        return OptimWrapper(optimizer)
    scale = dict(loss_scale=16.0) if precision == 'float16' else dict(loss_scale=1.0)
    return AmpOptimWrapper(optimizer=optimizer, dtype=precision, **scale)


def found(net):
    """What a detector finds in two images of noise: boxes, scores and labels, and masks if it has any."""
    with torch.no_grad():
        samples = net.test_step(raw_batch('faster_rcnn', 0))
    return [value for sample in samples for value in sample.pred_instances.values()]


@pytest.mark.parametrize('mode', ['joint', 'sequential'])
@pytest.mark.parametrize(
    'precision', ['float32', *(pytest.param(name, marks=GPU_ALONE) for name in TOLERANCES if '16' in name)]
)
@pytest.mark.parametrize('name', DETECTORS)
def test_a_training_step_is_that_of_the_formula(name, precision, mode):
    model = detector(name, norm_eval=True).train()
    plain = copy.deepcopy(model)
    SelfDistillation(model, DistillationSettings(**SETTINGS, mode=mode)).attach()
    scale = model.forward.loss_scale = 16.0 if precision == 'float16' else 1.0
    optimizer, records = watched_sgd(model, lr=0.1)
    log = model.train_step(raw_batch(name, 0), optimizer_wrapper(optimizer, precision))
    with torch.autocast(DEVICE, getattr(torch, precision), enabled=precision != 'float32'):
        loss = reference_loss(plain, raw_batch(name, 0))
    (scale * loss).backward()
    assert log['kd.loss_p2'].dtype == torch.float32 and log['loss'].item() == pytest.approx(loss.item(), rel=1e-3)
    expected = gradients(plain)
    assert records[0].keys() == expected.keys()
    for key, (_, gradient) in records[0].items():
        assert gradient.isfinite().all() and furthest(gradient, expected[key] / scale) <= TOLERANCES[precision], key


@pytest.mark.parametrize('name', [*DETECTORS, 'retinanet'])
def test_one_pass_is_the_single_runs(name):
    net = detector(name).eval()
    single = {}
    for code in CODES:
        with net.backbone.using_skip(code):
            single[code] = found(net)
    with sharing(net):
        for code in CODES:
            with net.backbone.using_skip(code):
                assert all(map(torch.equal, found(net), single[code])), code
    assert len({str(values[0]) for values in single.values()}) > 8  # the depths differ


@pytest.mark.parametrize('code', ['FFFF', 'TFTT', 'TTTT'])
def test_an_exported_depth_is_the_one_in_place(code):
    cfg = small_images(tiny_config('mask_rcnn'))
    net = build(copy.deepcopy(cfg)).eval()
    _, plain = plain_detector(cfg, net, SkipConfig.parse(code))
    with net.to(DEVICE).backbone.using_skip(code):
        assert all(map(torch.equal, found(plain.to(DEVICE)), found(net)))


def test_compiled_stages_compute_the_same():
    plain = detector().backbone.eval()
    compiled = copy.deepcopy(plain)
    compile_stages(compiled)
    images = torch.rand(2, 3, 64, 64, device=DEVICE)
    with torch.no_grad():
        for code in CODES:
            for got, expected in zip(compiled(images, code), plain(images, code)):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('synchronised', [False, pytest.param(True, marks=GPU_ALONE)])
def test_one_rank_takes_the_step_of_a_single_process(one_rank, synchronised):
    alone = detector().train()
    model = copy.deepcopy(alone)
    if synchronised:
        model = convert_sync_batchnorm(model, 'torch')
    ids = None if DEVICE == 'cpu' else [torch.cuda.current_device()]
    wrapped = MMDistributedDataParallel(model, device_ids=ids, find_unused_parameters=False, broadcast_buffers=False)
    records = []
    for net in (alone, wrapped):
        SelfDistillation(net).attach()
        optimizer, record = watched_sgd(net, lr=0.1)
        net.train_step(raw_batch('faster_rcnn', 0), OptimWrapper(optimizer))
        records.append({name.removeprefix('module.'): gradient for name, (_, gradient) in record[0].items()})
    assert records[0].keys() == records[1].keys()
    for key, gradient in records[1].items():
        assert furthest(gradient, records[0][key]) <= 1e-4, key


def test_features_are_those_of_the_cpu():
    net = detector().eval()
    images = torch.rand(2, 3, 64, 64)
    here = extract_feats(net, images.to(DEVICE), CODES)
    there = extract_feats(net.cpu(), images, CODES)
    for code, feats in there.items():
        for got, expected in zip(here[code], feats):
            torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-3)
