"""What modules were called with and gave during a pass, without leaving anything on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

#: (inputs, output) of every call, by module.
Calls = dict[nn.Module, list[tuple[tuple[Any, ...], Any]]]


@contextmanager
def caught_calls(modules: Iterable[nn.Module]) -> Iterator[Calls]:
    """Collect the calls of ``modules`` inside the ``with`` block."""
    calls: Calls = {module: [] for module in modules}

    def catch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module].append((inputs, output))

    with ExitStack() as stack:
        for module in calls:
            stack.callback(module.register_forward_hook(catch).remove)
        yield calls
