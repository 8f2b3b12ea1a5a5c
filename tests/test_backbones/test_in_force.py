"""`using_skip` holds inside its with block only, whoever runs in between: generators, tasks, threads, later ids."""

import asyncio
import contextlib
import contextvars
import gc
import threading

import pytest
import torch

from adn_mmdet import UserError
from adn_mmdet.backbones import AdaptiveDepthBackbone


class Bare(AdaptiveDepthBackbone):
    """A backbone of four stages without layers."""

    num_stages = 4

    def __init__(self):
        super().__init__()
        self.set_skip('FFFF')

    def forward(self, x):
        return x + sum(self.resolve_skip())


@pytest.fixture
def net():
    return Bare()


def at(net):
    return str(net.resolve_skip())


def depths(net, *codes):
    """A generator that is suspended inside a block of each code, and says what is in force there."""
    for code in codes:
        with net.using_skip(code):
            yield at(net)
            yield at(net)


def test_suspended_generator_leaves_its_caller_alone(net):
    for found in depths(net, 'TTTT', 'FTFF'):
        assert (found, at(net)) in {('TTTT', 'FFFF'), ('FTFF', 'FFFF')}
    generator = depths(net, 'TTTT')
    assert next(generator) == 'TTTT'
    with net.using_skip('FFFT'):
        assert at(net) == 'FFFT' and next(generator) == 'TTTT' and at(net) == 'FFFT'
        generator.close()
        assert at(net) == 'FFFT'
    assert at(net) == 'FFFF'


def test_suspended_generator_that_is_dropped_ends_its_block(net):
    with net.using_skip('TTFF'):
        generator = depths(net, 'TTTT')
        next(generator)
        del generator
        gc.collect()
        assert at(net) == 'TTFF'
    assert at(net) == 'FFFF'


def test_generators_in_any_order(net):
    first, second = depths(net, 'TTTT'), depths(net, 'FTFF')
    assert [next(first), next(second), next(first), next(second)] == ['TTTT', 'FTFF', 'TTTT', 'FTFF']
    assert at(net) == 'FFFF'

    def driver(source):
        with net.using_skip('FFTT'):
            yield at(net)
            yield next(source), at(net)

    source = depths(net, 'TTTT')
    outer = driver(source)
    assert [next(outer), next(source), next(outer)] == ['FFTT', 'TTTT', ('TTTT', 'FFTT')]


def test_generator_runs_at_its_callers_skip_where_it_says_nothing(net):
    def plain():
        while True:
            yield at(net)

    generator = plain()
    with net.using_skip('TFFF'):
        assert next(generator) == 'TFFF'

    def delegating():
        with net.using_skip('FFFT'):
            yield from (next(generator) for _ in range(1))

    assert list(delegating()) == ['FFFT'] and next(generator) == 'FFFF'


def test_context_managers_are_generators_whose_block_is_their_callers(net):
    @contextlib.contextmanager
    def base_net():
        with contextlib.ExitStack() as stack:
            stack.enter_context(net.using_skip('TTTT'))
            yield

    with base_net():
        assert at(net) == 'TTTT'

    @base_net()
    def decorated():
        return at(net)

    def in_a_generator():
        with base_net():
            yield at(net)
            yield decorated()

    generator = in_a_generator()
    assert [next(generator), at(net), next(generator), at(net)] == ['TTTT', 'FFFF', 'TTTT', 'FFFF']
    assert decorated() == 'TTTT' and at(net) == 'FFFF'


def test_tasks_and_asynchronous_generators(net):
    async def stream(code):
        with net.using_skip(code):
            for _ in range(2):
                await asyncio.sleep(0)
                yield at(net)

    @contextlib.asynccontextmanager
    async def managed():
        with net.using_skip('FTTF'):
            yield

    async def consume(code):
        async for found in stream(code):
            assert (found, at(net)) == (code, 'FFFF')

    async def main():
        await asyncio.gather(*map(consume, ('TTTT', 'FTFF', 'FFFT')))
        async with managed():
            assert at(net) == 'FTTF'
        with net.using_skip('TTFF'):  # what is started inside a block runs at its skip
            task = asyncio.create_task(asyncio.sleep(0, None))
            assert await asyncio.gather(asyncio.to_thread(at, net)) == ['TTFF']
            await task
        assert at(net) == 'FFFF'

    asyncio.run(main())


def test_another_thread_in_a_generators_context_must_say_which(net):
    async def stream():
        with net.using_skip('TTTT'):
            yield await asyncio.to_thread(at, net)

    async def main():
        return [found async for found in stream()]

    with pytest.raises(UserError, match='using_skip was entered in a generator.* another thread or task'):
        asyncio.run(main())


def test_generator_that_ends_in_another_thread(net):
    generator = depths(net, 'TTTT')
    next(generator)
    thread = threading.Thread(target=generator.close)
    thread.start()
    thread.join()
    assert at(net) == 'FFFF'
    assert next(depths(net, 'FTFF')) == 'FTFF'


def test_a_later_backbone_of_the_same_id_inherits_nothing():
    net = Bare()
    with net.using_skip('TTTT'):
        context = contextvars.copy_context()  # as a task that outlives the block has
    assert context.run(at, net) == 'TTTT'
    identity, others = id(net), []
    del net
    while id(other := Bare.__new__(Bare)) != identity:
        others.append(other)  # kept, so that the next one is elsewhere
        assert len(others) < 10_000
    other.__init__()
    assert context.run(at, other) == 'FFFF'


def test_a_compiled_model_follows():
    torch._dynamo.reset()
    net = Bare()
    compiled = torch.compile(net, backend='eager')
    for code in ('FFFF', 'TTTT', 'FTFF', 'FFFF'):
        with net.using_skip(code):
            assert compiled(torch.ones(1)) == 1 + code.count('T')
    assert compiled(torch.ones(1)) == 1
    torch._dynamo.reset()
