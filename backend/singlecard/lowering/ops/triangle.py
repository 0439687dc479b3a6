"""Triangles of matrices."""

from __future__ import annotations

import torch

from singlecard.lowering.declaration import computes_with, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


@lowers(aten.tril.default)
@computes_with("diagonal")
def tril(net: Net, self: Tensor, diagonal: Size = 0) -> Tensor:
    """The elements on and below a diagonal; zero above."""
    return net.where(lower_triangle(net, self, diagonal), self, net.scalar(0, self.dtype))


@lowers(aten.triu.default)
@computes_with("diagonal")
def triu(net: Net, self: Tensor, diagonal: Size = 0) -> Tensor:
    """The elements on and above a diagonal; zero below."""
    return net.where(
        lower_triangle(net, self, net.size_math("SUB", diagonal, 1)),
        net.scalar(0, self.dtype),
        self,
    )


def lower_triangle(net: Net, x: Tensor, diagonal: Size) -> Tensor:
    """Return which elements of the last two axes of ``x`` are on or below a diagonal."""
    rows, columns = x.shape[-2:]
    if rows >= 0 and columns >= 0 and isinstance(diagonal, int):
        return net.constant(torch.ones(rows, columns, dtype=torch.bool).tril(diagonal))
    row = net.unsqueeze(net.iota(net.size(x, -2)), 1)
    column = net.iota(net.size(x, -1))
    limit = net.sum(row, net.operand(net.size_math("SUM", diagonal, 1), torch.int64, 2))
    return net.binary("LESS", column, limit)
