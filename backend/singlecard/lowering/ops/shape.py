"""Ops that move elements and leave their values alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


@lowers(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def view(net: Net, self: Tensor, size: Sequence[Size]) -> Tensor:
    """The same elements in another shape."""
    return net.reshape(self, size)


@lowers(aten.permute.default)
def permute(net: Net, self: Tensor, dims: Sequence[int]) -> Tensor:
    """Axes in another order."""
    return net.permute(self, dims)


@lowers(aten.transpose.int)
def transpose(net: Net, self: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged."""
    return net.transpose(self, dim0, dim1) if self.ndim else self


@lowers(aten.t.default)
def t(net: Net, self: Tensor) -> Tensor:
    """A matrix transposed."""
    return net.transpose(self, 0, 1) if self.ndim == 2 else self


@lowers(aten.expand.default)
def expand(net: Net, self: Tensor, size: Sequence[Size], implicit: bool = False) -> Tensor:
    """Extents of 1 repeated."""
    return net.expand(self, size)


@lowers(aten.unsqueeze.default)
def unsqueeze(net: Net, self: Tensor, dim: int) -> Tensor:
    """A new axis of extent 1."""
    return net.unsqueeze(self, dim)


@lowers(aten.squeeze.dim, aten.squeeze.dims)
@accepts(arg("self").static_shape)
def squeeze(net: Net, self: Tensor, dim: int | Sequence[int]) -> Tensor:
    """Axes of extent 1 removed."""
    axes = [dim] if isinstance(dim, int) else list(dim)
    return net.squeeze(self, [axis for axis in axes if self.ndim and self.shape[axis] == 1])


@lowers(aten.cat.default)
def cat(net: Net, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors joined along one axis."""
    return net.concat(net.promote(*tensors, dtype=net.result.dtype), dim)


@lowers(aten.select.int)
@accepts(arg("index").known)
def select(net: Net, self: Tensor, dim: int, index: int) -> Tensor:
    """One slice of one axis."""
    axis = dim % self.ndim
    start: Size = index
    if index < 0:
        extent = net.size(self, axis)
        if isinstance(extent, int):
            start = index + extent
        else:
            start = net.size_math("SUM", extent, index)
    return net.squeeze(net.narrow(self, axis, start, 1), [axis])


@lowers(aten.slice.Tensor)
@accepts(arg("self").static_shape, arg("start").known, arg("end").known, arg("step").known)
def slice_(
    net: Net,
    self: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    """A range of one axis."""
    begin, stop, by = slice(start, end, step).indices(self.shape[dim])
    return net.narrow(self, dim, begin, len(range(begin, stop, by)), by)


@lowers(aten.split.Tensor, aten.split_with_sizes.default)
@accepts(arg("self").static_shape)
def split(net: Net, self: Tensor, split_size: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    """One axis cut into pieces."""
    pieces, start = [], 0
    for piece in net.result:
        length = piece.shape[dim]
        pieces.append(net.narrow(self, dim, start, length))
        start += length
    return pieces
