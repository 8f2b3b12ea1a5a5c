import copy
import logging
import random

import pytest
import torch
from networks import NETWORKS, images, same_weights
from tiny import build, tiny_config
from torch import nn

from adn_mmdet import SkipConfig, UserError
from adn_mmdet.backbones.compiled import compile_stages

CODES = SkipConfig.all(4)


class CountingBackend:
    """Runs graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    logging.disable(logging.DEBUG)  # pytest would make torch write its trace, for most of the test's time
    yield CountingBackend()
    logging.disable(logging.NOTSET)
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


def test_two_graphs_a_stage_serve_all_codes_in_any_order(backend):
    plain = build(tiny_config()).backbone.eval()
    compiled = copy.deepcopy(plain)
    compile_stages(compiled, backend=backend, fullgraph=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    order = random.Random(0)
    # The second size is compiled with free sizes, which then serve all others.
    for shape, graphs in (((2, 3, 64, 64), 8), ((3, 3, 96, 64), 16), ((4, 3, 64, 96), 16)):
        images = torch.rand(shape)
        for code in order.sample(CODES, 16):
            with torch.no_grad(), compiled.using_skip(code):
                found, expected = compiled(images), plain(images, code)
            assert all(map(torch.equal, found, expected)), (shape, code)
        assert backend.graphs == graphs, shape
    with torch.no_grad():
        assert all(map(torch.equal, copy.deepcopy(compiled)(images), plain(images)))
    assert backend.graphs == graphs  # a copy is not compiled


def test_a_stock_detector(backend):
    detector = build(tiny_config('retinanet', 'base')).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = detector.extract_feat(images)
        compile_stages(detector, backend=backend, fullgraph=True)
        for _ in range(2):
            assert all(map(torch.equal, detector.extract_feat(images), expected))
            assert backend.graphs == 8  # of 9 blocks, the last two of stage 3 having one in common


def test_nothing_to_compile():
    with pytest.raises(UserError, match='Linear has no residual stages to compile'):
        compile_stages(nn.Linear(1, 1))


def test_vit(backend):
    """All blocks have graphs in common. (Swin has 8 and MobileNetV2 18, but they take minutes to make.)"""
    plain = same_weights(NETWORKS['vit'].adaptive).eval()
    compiled = copy.deepcopy(plain)
    compile_stages(compiled, backend=backend, fullgraph=True)
    for codes in (('FFFF', 'TTTT'), ('TFFT', 'FTTF')):
        for code in codes:
            with torch.no_grad():
                found, expected = compiled(images(), code), plain(images(), code)
            assert all(map(torch.equal, found, expected)), code
        assert backend.graphs == 3  # other codes compile nothing
