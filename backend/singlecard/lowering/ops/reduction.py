"""Reductions of axes to one number: sums, means, norms, truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten
Dims = int | Sequence[int] | None


def reduce(net: Net, operation: str, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    """Reduce one, several or (None, or an empty list) all axes; a 0-d tensor is its own result."""
    if not x.ndim:
        return x
    axes = [dim] if isinstance(dim, int) else list(dim or range(x.ndim))
    return net.reduce(operation, x, axes, keepdim)


@lowers(aten.mean.dim)
@accepts(dtype("self").floating)
def mean(
    net: Net,
    self: Tensor,
    dim: Dims,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Arithmetic mean over axes."""
    return reduce(net, "AVG", net.cast(self, net.result.dtype), dim, keepdim)


@lowers(aten.mean.default)
def mean_all(net: Net, self: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Arithmetic mean of all elements."""
    return reduce(net, "AVG", net.cast(self, net.result.dtype), None, False)


@lowers(aten.sum.dim_IntList)
def sum_(
    net: Net,
    self: Tensor,
    dim: Dims,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum over axes."""
    return reduce(net, "SUM", net.cast(self, net.result.dtype), dim, keepdim)


@lowers(aten.prod.default)
def prod_all(net: Net, self: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Product of all elements."""
    return reduce(net, "PROD", net.cast(self, net.result.dtype), None, False)


@lowers(aten.prod.dim_int)
def prod(
    net: Net, self: Tensor, dim: int, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Product over one axis."""
    return reduce(net, "PROD", net.cast(self, net.result.dtype), dim, keepdim)


def has_any(net: Net, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    """Return whether any element is true: the largest of ones and zeros."""
    ones = net.cast(net.cast(x, torch.bool), torch.int32)
    return net.cast(reduce(net, "MAX", ones, dim, keepdim), torch.bool)


@lowers(aten.any.default)
def any_all(net: Net, self: Tensor) -> Tensor:
    """Whether any element is true."""
    return has_any(net, self, None, False)


@lowers(aten.any.dim, aten.any.dims)
def any_(net: Net, self: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether any element along axes is true."""
    if isinstance(dim, Sequence) and not dim:
        return net.cast(self, torch.bool)  # unlike elsewhere, an empty list means no axis
    return has_any(net, self, dim, keepdim)


#: Norms that are a reduction of absolute values.
_DIRECT = {math.inf: "MAX", -math.inf: "MIN", 1: "SUM"}


@lowers(aten.linalg_vector_norm.default)
@accepts(dtype("self").floating, arg("ord").known)
def vector_norm(
    net: Net,
    self: Tensor,
    ord: float = 2,
    dim: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Length over axes: sum(|self| ** ord) ** (1 / ord), its limits at infinity and at zero."""
    # In float32: a sum of squares of halves soon is infinite.
    x = net.cast(self, torch.float32)
    return net.cast(length(net, x, float(ord), dim, keepdim), net.result.dtype)


def length(net: Net, x: Tensor, order: float, dim: Dims, keepdim: bool) -> Tensor:
    """Return the norm of an order over axes."""
    if order == 2:
        return net.unary("SQRT", reduce(net, "SUM", net.prod(x, x), dim, keepdim))
    sizes = net.unary("ABS", x)
    if order in _DIRECT:
        return reduce(net, _DIRECT[order], sizes, dim, keepdim)
    if order == 0:
        is_zero = net.binary("EQUAL", x, net.scalar(0.0, x.dtype))
        return reduce(net, "SUM", net.cast(net.logical_not(is_zero), x.dtype), dim, keepdim)
    powers = net.binary("POW", sizes, net.scalar(order, x.dtype))
    total = reduce(net, "SUM", powers, dim, keepdim)
    return net.binary("POW", total, net.scalar(1 / order, x.dtype))
