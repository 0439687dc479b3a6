"""Distances between rows."""

from __future__ import annotations

import math

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten._cdist_forward.default)
@accepts(dtype("x1").floating)
def cdist(net: Net, x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Tensor:
    """The distance of each row of one matrix from each row of another."""
    return _length(net, net.sub(net.unsqueeze(x1, -2), net.unsqueeze(x2, -3)), p)


@lowers(aten._pdist_forward.default)
@accepts(dtype("self").floating, arg("self").static_shape)
def pdist(net: Net, self: Tensor, p: float = 2) -> Tensor:
    """The distance of each row of a matrix from each later one."""
    pairs = torch.triu_indices(self.shape[0], self.shape[0], 1)
    one, other = (net.gather(self, net.constant(rows.contiguous()), 0) for rows in pairs)
    return _length(net, net.sub(one, other), p)


def _length(net: Net, x: Tensor, p: float) -> Tensor:
    """The p-norm over the last axis."""
    last = [x.ndim - 1]
    size = net.unary("ABS", x)
    if p == math.inf:
        return net.reduce("MAX", size, last, False)
    if p == 0:
        is_zero = net.binary("EQUAL", x, net.scalar(0.0, x.dtype, x.ndim))
        return net.reduce("SUM", net.cast(net.logical_not(is_zero), x.dtype), last, False)
    if p == 1:
        return net.reduce("SUM", size, last, False)
    if p == 2:
        return net.unary("SQRT", net.reduce("SUM", net.prod(x, x), last, False))
    total = net.reduce("SUM", net.binary("POW", size, net.scalar(p, x.dtype, x.ndim)), last, False)
    return net.binary("POW", total, net.scalar(1 / p, x.dtype, total.ndim))
