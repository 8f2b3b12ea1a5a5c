"""What several sub-networks compute alike, computed once: the stem, stages of a common prefix, the neck's laterals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from .adaptive_depth import AdaptiveDepthBackbone, find_backbone


class _Memory:
    """The last call of each kind: its tensors, how they were left, and its output."""

    def __init__(self, backbone: AdaptiveDepthBackbone, neck: nn.Module | None) -> None:
        self.backbone: AdaptiveDepthBackbone | None = backbone
        weights = [tensor for part in (backbone, neck) if part for tensor in part.state_dict(keep_vars=True).values()]
        self.weights = [tensor for tensor in weights if not tensor.is_inference()]
        self.versions = -1
        self.calls: dict[Any, tuple[list[Tensor], list[int | Tensor], Any]] = {}

    def forget(self) -> None:
        """Run everything from now on, for whoever still has this memory, such as a task that was started inside."""
        self.backbone, self.weights, self.calls = None, [], {}

    def repeat(self, call: Callable[..., Any], *args: Any) -> Any:
        """The output of a call; the last one's where its tensors are the very same, and none was written to since."""
        if self.versions != (versions := sum(tensor._version for tensor in self.weights)):
            self.versions, self.calls = versions, {}
        given = _tensors(args)
        device = given[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # A call of each kind is kept: what differs beside the first tensor, with weights by their ids.
        kind = call, precision, *(id(arg) if isinstance(arg, Tensor) else str(arg) for arg in args[1:])
        tensors, states, output = self.calls.get(kind, ([], [], None))
        if all(map(_is, tensors, given)) and tensors and all(map(_is_as_left, tensors, states)):
            return output
        output = call(*args)
        tensors = [*given, *_tensors([output])]
        self.calls[kind] = tensors, [_state(tensor) for tensor in tensors], output
        return output


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some values, and those in tuples of them."""
    inner = [each for value in values for each in (value if isinstance(value, tuple) else [value])]
    return [value for value in inner if isinstance(value, Tensor)]


def _is(one: Tensor, other: Tensor) -> bool:
    return one is other


def _state(tensor: Tensor) -> int | Tensor:
    """What tells whether a tensor was written to; those of inference mode have no version, so their values do."""
    return tensor.clone() if tensor.is_inference() else tensor._version


def _is_as_left(tensor: Tensor, state: int | Tensor) -> bool:
    return torch.equal(tensor, state) if isinstance(state, Tensor) else tensor._version == state


# A context variable is seen by its own thread or task only, so that threads never mix.
_MEMORY: ContextVar[_Memory | None] = ContextVar('what_sub_networks_share', default=None)


@contextmanager
def sharing(detector: nn.Module) -> Iterator[None]:
    """Run the sub-networks of one detector on the same images without repeating what they have in common.

    Stages form a tree of skip flags. In the order of :meth:`SkipConfig.all` the 16 sub-networks of ResNet-50 run 93
    residual blocks instead of 200. Nothing is put on the detector: other threads, and blocks inside this one, have
    their own memory. In training mode or with gradients everything runs as ever.

    Args:
        detector: one with an adaptive-depth backbone.

    Raises:
        UserError: it has none.
    """
    outer, memory = _MEMORY.get(), _Memory(find_backbone(detector), getattr(detector, 'neck', None))
    _MEMORY.set(memory)
    try:
        yield
    finally:
        memory.forget()
        _MEMORY.set(outer)


def run_once(backbone: AdaptiveDepthBackbone, call: Callable[..., Any], *args: Any) -> Any:
    """Call a part of a backbone, or the neck, or take its last output where :func:`sharing` allows to."""
    memory = _memory(backbone)
    return memory.repeat(call, *args) if memory else call(*args)


def as_output(backbone: AdaptiveDepthBackbone, x: Tensor, stage: int) -> Tensor:
    """What a backbone returns for a stage's output: inside :func:`sharing` a tensor whose convolutions run once."""
    memory = _memory(backbone)
    return memory.repeat(_Output.of, x, stage) if memory else x


def _memory(backbone: AdaptiveDepthBackbone) -> _Memory | None:
    if torch.compiler.is_compiling() or backbone.training or torch.is_grad_enabled():
        return None
    memory = _MEMORY.get()
    return memory if memory and memory.backbone is backbone else None


class _Output(Tensor):
    """An output of a backbone: what a convolution makes of it, such as an FPN's lateral one, is computed once."""

    @classmethod
    def of(cls, x: Tensor, stage: int) -> Tensor:
        return x.as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        memory = _MEMORY.get()
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.conv2d and not kwargs and memory and memory.backbone and not torch.is_grad_enabled():
                return memory.repeat(func, *args)
            return func(*args, **(kwargs or {}))
