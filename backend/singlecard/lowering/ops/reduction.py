"""Reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.mean.dim)
@accepts(dtype("self").floating)
def mean(
    net: Net,
    self: Tensor,
    dim: Sequence[int] | None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Arithmetic mean over axes."""
    x = net.cast(self, net.result.dtype)
    return net.reduce("AVG", x, dim or range(x.ndim), keepdim) if x.ndim else x


@lowers(aten._softmax.default)
@accepts(dtype("self").floating)
def softmax(net: Net, self: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """exp(x) / sum(exp(x)) along one axis."""
    x = net.cast(self, net.result.dtype)
    return net.softmax(x, dim) if x.ndim else net.prod(x, net.scalar(0.0, x.dtype))


@lowers(aten.sum.dim_IntList)
def sum_(
    net: Net,
    self: Tensor,
    dim: Sequence[int] | None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum over axes."""
    x = net.cast(self, net.result.dtype)
    return net.reduce("SUM", x, dim or range(x.ndim), keepdim) if x.ndim else x


@lowers(aten.linalg_vector_norm.default)
@accepts(dtype("self").floating, arg("ord").one_of(2))
def vector_norm(
    net: Net,
    self: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Euclidean length over axes."""
    x = net.cast(self, net.result.dtype)
    squares = net.prod(x, x)
    total = net.reduce("SUM", squares, dim or range(x.ndim), keepdim) if x.ndim else squares
    return net.unary("SQRT", total)
