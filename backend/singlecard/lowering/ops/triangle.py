"""Triangles of matrices."""

from __future__ import annotations

import torch

from singlecard.lowering.declaration import lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.tril.default)
def tril(net: Net, self: Tensor, diagonal: int = 0) -> Tensor:
    """The elements on and below a diagonal; zero above."""
    return net.where(lower_triangle(net, self, diagonal), self, net.scalar(0, self.dtype))


@lowers(aten.triu.default)
def triu(net: Net, self: Tensor, diagonal: int = 0) -> Tensor:
    """The elements on and above a diagonal; zero below."""
    return net.where(lower_triangle(net, self, diagonal - 1), net.scalar(0, self.dtype), self)


def lower_triangle(net: Net, x: Tensor, diagonal: int) -> Tensor:
    """Return which elements of the last two axes of ``x`` are on or below a diagonal."""
    rows, columns = x.shape[-2:]
    if rows >= 0 and columns >= 0:
        return net.constant(torch.ones(rows, columns, dtype=torch.bool).tril(diagonal))
    row = net.unsqueeze(net.iota(net.size(x, -2)), 1)
    column = net.iota(net.size(x, -1))
    limit = net.sum(row, net.scalar(diagonal + 1, torch.int64, 2))
    return net.binary("LESS", column, limit)
