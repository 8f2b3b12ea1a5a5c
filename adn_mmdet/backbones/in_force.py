"""What is in force for a module: what the open ``using_…`` blocks of this thread, task or generator say."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from typing import Any

import torch
from torch import nn

from ..errors import UserError


@dataclass(eq=False)
class _Block:
    """One ``with`` block. The module is held weakly: neither kept alive nor mistaken for a later one of its id."""

    module: weakref.ref[nn.Module]
    value: Any
    generator: int | None  # id of the innermost generator's frame that it was entered in
    worker: tuple[int, int]
    is_open: bool = True


# A context variable is seen by its own thread or task only. It lives outside the module because it can be neither
# pickled nor deep-copied.
_BLOCKS: ContextVar[tuple[_Block, ...]] = ContextVar('in_force', default=())


@contextlib.contextmanager
def force(module: nn.Module, value: Any) -> Iterator[None]:
    """Put a value, such as a skip, in force for a module inside the ``with`` block."""
    generator = next(iter(_generators()), None)
    block = _Block(weakref.ref(module), value, generator, _worker())
    _BLOCKS.set((*_BLOCKS.get(), block))
    try:
        yield
    finally:
        # A generator may end in any order and, when it is garbage, in any thread: so each takes out its own block.
        # A task that was started inside a block of no generator goes on at its skip, as context variables do.
        block.is_open = generator is None
        _BLOCKS.set(tuple(other for other in _BLOCKS.get() if other is not block))


@torch.compiler.disable  # a compiled forward would take the value of its first call for a constant
def in_force(module: nn.Module) -> Any:
    """The value of the innermost open block for a module; None where there is none.

    A generator shares the context of its caller. So a block that was entered in a generator counts while the
    generator's frame is on the stack, not while it is suspended.

    Raises:
        UserError: this thread or task took over the context of a generator, and cannot tell whether it works for it.
    """
    blocks = [block for block in _BLOCKS.get() if block.module() is module and block.is_open]
    if not blocks:
        return None
    innermost = {block.generator: block for block in blocks}  # the last one of each generator
    running = next((frame for frame in _generators() if frame in innermost), None)
    if running is None and any(block.generator and block.worker != _worker() for block in blocks):
        raise UserError(
            'using_skip was entered in a generator, but the backbone runs in another thread or task: '
            'pass it skip=… there, or enter using_skip in what that thread or task runs'
        )
    return innermost[running].value if running in innermost else None


def _generators() -> list[int]:
    """Ids of the frames of generators on the stack, innermost first, without those that are context managers."""
    found = []
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        is_generator = frame.f_code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR)
        if is_generator and caller.f_globals is not vars(contextlib):
            found.append(id(frame))
        frame = caller
    return found


def _worker() -> tuple[int, int]:
    """This thread and, in an event loop, this task."""
    with contextlib.suppress(RuntimeError):  # no event loop runs
        return threading.get_ident(), id(asyncio.current_task())
    return threading.get_ident(), 0
