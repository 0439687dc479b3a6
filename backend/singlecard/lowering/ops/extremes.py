"""The largest and the smallest of many, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.declaration import lowers
from singlecard.lowering.ops.reduction import Dims, reduce
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


def extreme(net: Net, operation: str, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    """Return the largest or smallest over axes; of truth values too."""
    if x.dtype != torch.bool:
        return reduce(net, operation, x, dim, keepdim)
    return net.cast(reduce(net, operation, net.cast(x, torch.int32), dim, keepdim), torch.bool)


@lowers(aten.amax.default)
def amax(net: Net, self: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """The largest over axes."""
    return extreme(net, "MAX", self, dim, keepdim)


@lowers(aten.amin.default)
def amin(net: Net, self: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """The smallest over axes."""
    return extreme(net, "MIN", self, dim, keepdim)


@lowers(aten.max.default)
def max_all(net: Net, self: Tensor) -> Tensor:
    """The largest of all elements."""
    return extreme(net, "MAX", self, None, False)


@lowers(aten.min.default)
def min_all(net: Net, self: Tensor) -> Tensor:
    """The smallest of all elements."""
    return extreme(net, "MIN", self, None, False)


def _first(net: Net, x: Tensor, dim: int, keepdim: bool, largest: bool) -> tuple[Tensor, Tensor]:
    """Return the extreme along one axis, and the index of the first that has it."""
    if not x.ndim:
        return x, net.scalar(0, torch.int64)
    numbers = net.cast(x, torch.int32) if x.dtype == torch.bool else x
    values, indices = net.topk(numbers, 1, dim, largest)
    if not keepdim:
        values, indices = net.squeeze(values, [dim]), net.squeeze(indices, [dim])
    return net.cast(values, x.dtype), indices


@lowers(aten.max.dim)
def max_dim(net: Net, self: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
    """The largest along one axis, and its index."""
    return list(_first(net, self, dim, keepdim, True))


@lowers(aten.min.dim)
def min_dim(net: Net, self: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
    """The smallest along one axis, and its index."""
    return list(_first(net, self, dim, keepdim, False))


def _index(net: Net, x: Tensor, dim: int | None, keepdim: bool, largest: bool) -> Tensor:
    if dim is not None:
        return _first(net, x, dim, keepdim, largest)[1]
    index = _first(net, net.reshape(x, [-1]), 0, False, largest)[1]
    return net.reshape(index, [1] * x.ndim) if keepdim else index


@lowers(aten.argmax.default)
def argmax(net: Net, self: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the largest."""
    return _index(net, self, dim, keepdim, True)


@lowers(aten.argmin.default)
def argmin(net: Net, self: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the smallest."""
    return _index(net, self, dim, keepdim, False)
