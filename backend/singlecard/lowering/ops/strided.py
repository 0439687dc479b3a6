"""Views of a tensor's memory by strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sympy
import torch

from singlecard.capture.layouts import packed_order
from singlecard.capture.symbols import expression
from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.joining import replace_places
from singlecard.network.net import Net
from singlecard.network.shapes import known
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


def _memory_order(x: Any) -> list[int] | None:
    """Return the axes from the largest stride to the smallest, or None where memory has gaps."""
    order = packed_order(x.shape, x.stride())
    starts = isinstance(x.storage_offset(), int) and x.storage_offset() == 0
    repeats = any(isinstance(step, int) and step == 0 for step in x.stride())
    if order is None or not starts or repeats:
        return None
    return list(order)


def _holds_all_places(call: Call) -> bool:
    x, offset = call.values["self"], call.values["storage_offset"] or 0
    sides = zip(call.values["size"], call.values["stride"], strict=True)
    reach = offset + sum((extent - 1) * step for extent, step in sides)
    left = sympy.expand(expression(x.numel()) - expression(reach))
    return _memory_order(x) is not None and left.is_positive is True


_HOLDS_ALL = when(
    "self fills its memory and holds all places",
    _holds_all_places,
    lambda call: (
        f"shape {list(call.values['self'].shape)} with strides {list(call.values['self'].stride())}"
    ),
)

#: Memory has a meaning only where a tensor is all of it.
_WHOLE_MEMORY = (
    arg("self").static_shape,
    arg("size").known,
    arg("stride").known,
    arg("storage_offset").known,
    _HOLDS_ALL,
)


def _places(size: Sequence[int], stride: Sequence[int], offset: int | None) -> torch.Tensor:
    places = torch.zeros(tuple(size), dtype=torch.int64)
    for axis, (extent, step) in enumerate(zip(size, stride, strict=True)):
        steps = torch.arange(extent) * step
        places += steps.reshape([-1 if a == axis else 1 for a in range(len(size))])
    return places + (offset or 0)


def _varying_places(net: Net, size: Sequence[Size], stride: Sequence[Size], offset: Size) -> Tensor:
    """Return the same for sizes that only a call tells."""

    def number(value: Size) -> Tensor:
        return net.scalar(value, torch.int64, 1) if isinstance(value, int) else value

    rank = len(size)
    places = net.reshape(number(offset), [1] * rank)
    for axis, (extent, step) in enumerate(zip(size, stride, strict=True)):
        steps = net.prod(net.iota(extent), number(step))
        places = net.sum(places, net.reshape(steps, [-1 if a == axis else 1 for a in range(rank)]))
    return places


def _memory(net: Net, x: Tensor) -> tuple[Tensor, list[int]]:
    """Return the elements as they lie in PyTorch's memory, and the order of axes there."""
    order = _memory_order(net.given["self"])
    assert order is not None
    return net.reshape(net.permute(x, order), [math.prod(x.shape) if x.is_static else -1]), order


@lowers(aten.as_strided.default, aten.as_strided_copy.default)
@accepts(_HOLDS_ALL)
def as_strided(
    net: Net,
    self: Tensor,
    size: Sequence[Size],
    stride: Sequence[Size],
    storage_offset: Size | None = None,
) -> Tensor:
    """Elements at computed places of a tensor's memory."""
    memory, _ = _memory(net, self)
    numbers = known([*size, *stride, storage_offset or 0])
    if numbers is None:
        return net.gather(memory, _varying_places(net, size, stride, storage_offset or 0), 0)
    rank = len(size)
    return net.gather(
        memory, net.constant(_places(numbers[:rank], numbers[rank:-1], numbers[-1])), 0
    )


@lowers(aten.as_strided_scatter.default)
@accepts(*_WHOLE_MEMORY)
def as_strided_scatter(
    net: Net,
    self: Tensor,
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Tensor:
    """self, with the elements at computed places of its memory replaced by src."""
    places = _places(size, stride, storage_offset).flatten()
    memory, order = _memory(net, self)
    part = net.reshape(net.cast(src, self.dtype), [len(places)])
    whole = replace_places(net, memory, part, 0, places)
    turned = net.reshape(whole, [self.shape[axis] for axis in order])
    return net.permute(turned, [order.index(axis) for axis in range(self.ndim)])
