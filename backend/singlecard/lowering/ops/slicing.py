"""Ops that take parts of a tensor, at places that are known or computed from sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor
from singlecard.network.types import BYTES

aten = torch.ops.aten


def place_of(net: Net, place: Size, extent: Size) -> Size:
    """Return a place from the start of an axis; negative ones are counted from its end."""
    if isinstance(place, int):
        return place if place >= 0 else net.size_math("SUM", extent, place)
    negative = net.binary("LESS", place, net.constant(torch.tensor([0])))
    behind = net.size_math("SUM", place, extent)
    assert isinstance(behind, Tensor)
    return net.where(negative, behind, place)


def first_of_slice(net: Net, start: Size | None, extent: Size, length: Size) -> Size:
    """Return where a slice begins, given that ``length`` elements of it are there."""
    if start is None or (isinstance(length, int) and length == extent):
        return 0
    place = place_of(net, start, extent)
    if isinstance(place, int):
        return max(place, 0)
    return place if isinstance(start, int) and start >= 0 else net.size_math("MAX", place, 0)


@lowers(aten.slice.Tensor, aten.slice_copy.Tensor, takes=BYTES, gives=BYTES)
def slice_(
    net: Net,
    self: Tensor,
    dim: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> Tensor:
    """A range of one axis."""
    length = net.size_of(net.result.shape[dim])
    first = first_of_slice(net, start, net.size(self, dim), length)
    return net.narrow(self, dim, first, length, step)


@lowers(aten.narrow_copy.default)
def narrow_copy(net: Net, self: Tensor, dim: int, start: Size, length: Size) -> Tensor:
    """A range of one axis."""
    return net.narrow(self, dim, place_of(net, start, net.size(self, dim)), length)


@lowers(aten.select.int, aten.select_copy.int, takes=BYTES, gives=BYTES)
def select(net: Net, self: Tensor, dim: int, index: Size) -> Tensor:
    """One slice of one axis."""
    place = place_of(net, index, net.size(self, dim))
    return net.squeeze(net.narrow(self, dim, place, 1), [dim])


@lowers(
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split_copy.Tensor,
    takes=BYTES,
    gives=BYTES,
)
def split(net: Net, self: Tensor, split_size: Size | Sequence[Size], dim: int = 0) -> list[Tensor]:
    """One axis cut into pieces."""
    pieces: list[Tensor] = []
    start: Size = 0
    for piece in net.result:
        length = net.size_of(piece.shape[dim])
        pieces.append(net.narrow(self, dim, start, length))
        start = net.size_math("SUM", start, length)
    return pieces


@lowers(aten.unbind.int, aten.unbind_copy.int, takes=BYTES, gives=BYTES)
def unbind(net: Net, self: Tensor, dim: int = 0) -> list[Tensor]:
    """Every slice of one axis."""
    return [net.squeeze(net.narrow(self, dim, place, 1), [dim]) for place in range(len(net.result))]


@lowers(aten.diagonal.default)
@accepts(arg("self").static_shape)
def diagonal(net: Net, self: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A diagonal of two axes, as the last axis."""
    flat, start, step = flat_diagonal(net, self, offset, dim1, dim2)
    return net.narrow(flat, -1, start, net.result.shape[-1], step)


def flat_diagonal(
    net: Net, x: Tensor, offset: int, dim1: int, dim2: int
) -> tuple[Tensor, int, int]:
    """Put two axes last, as one; return the result and where in it the diagonal is: start, step."""
    last = [dim1 % x.ndim, dim2 % x.ndim]
    x = net.permute(x, [axis for axis in range(x.ndim) if axis not in last] + last)
    rows, columns = x.shape[-2:]
    start = offset if offset >= 0 else -offset * columns
    return net.reshape(x, [*x.shape[:-2], rows * columns]), start, columns + 1


@lowers(aten.unfold.default)
def unfold(net: Net, self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows of one axis, each as a row of a new last axis."""
    x = self if self.ndim else net.reshape(self, [1])
    axis = dimension % x.ndim
    count: Size = net.size_of(net.result.shape[axis]) if self.ndim else 1
    if size == step:  # windows that touch are rows of the axis itself
        rows = net.narrow(x, axis, 0, net.size_math("PROD", count, size))
        sizes = net.sizes(x)
        windows = net.reshape(rows, [*sizes[:axis], count, size, *sizes[axis + 1 :]])
    elif isinstance(count, Tensor):
        starts = net.prod(net.iota(count), net.scalar(step, torch.int64, 1))
        own = net.constant(torch.arange(size)[None])
        windows = net.gather(x, net.sum(net.unsqueeze(starts, 1), own), axis)
    else:
        places = torch.arange(count)[:, None] * step + torch.arange(size)
        windows = net.gather(x, net.constant(places), axis)
    if not self.ndim:
        return net.reshape(windows, [size])
    return net.permute(windows, [a for a in range(windows.ndim) if a != axis + 1] + [axis + 1])
