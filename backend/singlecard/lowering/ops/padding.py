"""Ops that add elements around a tensor, or cut them off where padding is negative."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


def padded(
    net: Net, x: Tensor, padding: Sequence[Size], mode: str, value: Number | None = None
) -> Tensor:
    """Pad the last axes: ``padding`` holds before and after of the last axis, then of the one
    before it. ``mode`` is a ``SampleMode`` of TensorRT's slice layer."""
    sizes = net.sizes(x)
    starts: list[Size] = [0] * x.ndim
    for place in range(len(padding) // 2):
        axis, before, after = x.ndim - 1 - place, padding[2 * place], padding[2 * place + 1]
        starts[axis] = net.size_math("SUB", 0, before)
        whole = net.size_math("SUM", sizes[axis], before)
        sizes[axis] = net.size_math("SUM", whole, after)
    if tuple(sizes) == x.shape and not any(starts):
        return x
    fill = None if value is None else net.scalar(value, x.dtype)
    return net.slice(x, starts, sizes, [1] * x.ndim, mode, fill)


@lowers(aten.constant_pad_nd.default)
@accepts(arg("value").known)
def constant_pad_nd(net: Net, self: Tensor, pad: Sequence[Size], value: Number = 0) -> Tensor:
    """A number around the tensor."""
    return padded(net, self, pad, "FILL", value)


@lowers(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
def reflection_pad(net: Net, self: Tensor, padding: Sequence[Size]) -> Tensor:
    """The tensor mirrored at its edges, which are not repeated."""
    return padded(net, self, padding, "REFLECT")


@lowers(
    aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default
)
def replication_pad(net: Net, self: Tensor, padding: Sequence[Size]) -> Tensor:
    """The edges of the tensor repeated."""
    return padded(net, self, padding, "CLAMP")
