"""Ops that put tensors together, or one into a part of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.slicing import first_of_slice, flat_diagonal, place_of
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


@lowers(aten.cat.default)
def cat(net: Net, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors joined along one axis."""
    return net.concat(net.promote(*tensors, dtype=net.result.dtype), dim)


@lowers(aten.stack.default)
def stack(net: Net, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors joined along a new axis."""
    alike = net.promote(*tensors, dtype=net.result.dtype)
    return net.concat([net.unsqueeze(x, dim) for x in alike], dim % net.result.ndim)


def _is_static(call: Call) -> bool:
    values = [*call.values["self"].shape, *call.values["src"].shape, call.values["start"] or 0]
    return all(isinstance(value, int) for value in values)


@lowers(aten.slice_scatter.default)
@accepts(
    when(
        "the shape and start are known, or step is 1",
        lambda call: call.values["step"] == 1 or _is_static(call),
        lambda call: f"step {call.values['step']}",
    )
)
def slice_scatter(
    net: Net,
    self: Tensor,
    src: Tensor,
    dim: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> Tensor:
    """self, with a range of one axis replaced by src."""
    axis = dim % self.ndim
    src = net.cast(src, self.dtype)
    extent, length = net.size(self, axis), net.size(src, axis)
    first = first_of_slice(net, start, extent, length)
    if step == 1:
        return _replace_range(net, self, src, axis, first, length)
    assert isinstance(first, int)
    places = torch.arange(first, first + src.shape[axis] * step, step)
    return replace_places(net, self, src, axis, places)


@lowers(aten.select_scatter.default)
def select_scatter(net: Net, self: Tensor, src: Tensor, dim: int, index: Size) -> Tensor:
    """self, with one slice of one axis replaced by src."""
    axis = dim % self.ndim
    sizes = net.sizes(self)
    row = net.cast(net.expand(src, sizes[:axis] + sizes[axis + 1 :]), self.dtype)
    place = place_of(net, index, sizes[axis])
    return _replace_range(net, self, net.unsqueeze(row, axis), axis, place, 1)


def _replace_range(
    net: Net, x: Tensor, part: Tensor, axis: int, first: Size, length: Size
) -> Tensor:
    """Put ``part`` between what stands before and behind a range of one axis."""
    extent = net.size(x, axis)
    behind = net.size_math("SUM", first, length)
    rest = net.size_math("SUB", extent, behind)
    parts = [part]
    if first != 0:
        parts.insert(0, net.narrow(x, axis, 0, first))
    if rest != 0:
        parts.append(net.narrow(x, axis, behind, rest))
    return net.concat(parts, axis)


def replace_places(net: Net, x: Tensor, part: Tensor, axis: int, places: torch.Tensor) -> Tensor:
    """Replace known places of one axis by the slices of ``part``, one after the other."""
    extent = x.shape[axis]
    source = torch.arange(extent)
    source[places] = extent + torch.arange(len(places))
    return net.gather(net.concat([x, part], axis), net.constant(source), axis)


@lowers(aten.diagonal_scatter.default)
@accepts(arg("self").static_shape)
def diagonal_scatter(
    net: Net, self: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Tensor:
    """self, with a diagonal of two axes replaced by src."""
    last = [dim1 % self.ndim, dim2 % self.ndim]
    order = [axis for axis in range(self.ndim) if axis not in last] + last
    flat, start, step = flat_diagonal(net, self, offset, dim1, dim2)
    length = src.shape[-1]
    places = torch.arange(start, start + length * step, step)
    joined = replace_places(net, flat, net.cast(src, self.dtype), flat.ndim - 1, places)
    whole = net.reshape(joined, [self.shape[axis] for axis in order])
    return net.permute(whole, [order.index(axis) for axis in range(self.ndim)])
