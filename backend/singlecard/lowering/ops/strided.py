"""Views of a tensor's memory by strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.joining import replace_places
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


def _memory_order(x: Any) -> list[int] | None:
    """Return the axes from the largest stride to the smallest, or None where memory has gaps."""
    order = sorted(range(x.ndim), key=lambda axis: (-x.stride()[axis], axis))
    step = 1
    for axis in reversed(order):
        if x.shape[axis] != 1 and x.stride()[axis] != step:
            return None
        step *= x.shape[axis]
    return order if x.storage_offset() == 0 else None


def _holds_all_places(call: Call) -> bool:
    x, offset = call.values["self"], call.values["storage_offset"] or 0
    sides = zip(call.values["size"], call.values["stride"], strict=True)
    reach = offset + sum((extent - 1) * step for extent, step in sides)
    return _memory_order(x) is not None and reach < x.numel()


#: Memory has a meaning only where a tensor is all of it.
_WHOLE_MEMORY = (
    arg("self").static_shape,
    arg("size").known,
    arg("stride").known,
    arg("storage_offset").known,
    when(
        "self fills its memory and holds all places",
        _holds_all_places,
        lambda call: (
            f"shape {list(call.values['self'].shape)} with strides "
            f"{list(call.values['self'].stride())}"
        ),
    ),
)


def _places(size: Sequence[int], stride: Sequence[int], offset: int | None) -> torch.Tensor:
    places = torch.zeros(tuple(size), dtype=torch.int64)
    for axis, (extent, step) in enumerate(zip(size, stride, strict=True)):
        steps = torch.arange(extent) * step
        places += steps.reshape([-1 if a == axis else 1 for a in range(len(size))])
    return places + (offset or 0)


def _memory(net: Net, x: Tensor) -> tuple[Tensor, list[int]]:
    """Return the elements as they lie in PyTorch's memory, and the order of axes there."""
    order = _memory_order(net.given["self"])
    assert order is not None
    return net.reshape(net.permute(x, order), [math.prod(x.shape)]), order


@lowers(aten.as_strided.default, aten.as_strided_copy.default)
@accepts(*_WHOLE_MEMORY)
def as_strided(
    net: Net,
    self: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Tensor:
    """Elements at computed places of a tensor's memory."""
    memory, _ = _memory(net, self)
    return net.gather(memory, net.constant(_places(size, stride, storage_offset)), 0)


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
