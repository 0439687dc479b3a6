"""Distances between points: of all pairs of rows, of two tensors."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.reduction import length, reduce
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.dist.default)
@accepts(dtype("self").floating, arg("p").known)
def dist(net: Net, self: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """Length of the difference."""
    a, b = net.promote(self, other, dtype=torch.float32)
    return net.cast(length(net, net.sub(a, b), float(p), None, False), net.result.dtype)


@lowers(aten._cdist_forward.default)
@accepts(dtype("x1").floating, arg("p").known)
def cdist(net: Net, x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Tensor:
    """The distance of each row of one matrix from each row of another."""
    a, b = net.promote(x1, x2, dtype=torch.float32)
    difference = net.sub(net.unsqueeze(a, -2), net.unsqueeze(b, -3))
    return net.cast(_apart(net, difference, float(p), -1), net.result.dtype)


@lowers(aten._pdist_forward.default)
@accepts(dtype("self").floating, arg("self").static_shape, arg("p").known)
def pdist(net: Net, self: Tensor, p: float = 2) -> Tensor:
    """The distance of each row of a matrix from each later one."""
    x = net.cast(self, torch.float32)
    first, second = torch.triu_indices(self.shape[0], self.shape[0], 1)
    ends = (net.gather(x, net.constant(index.contiguous()), 0) for index in (first, second))
    return net.cast(_apart(net, net.sub(*ends), float(p), 1), net.result.dtype)


def _apart(net: Net, difference: Tensor, order: float, axis: int) -> Tensor:
    """Return lengths of differences. Counted, a NaN among them is NaN, unlike in a norm."""
    if order:
        return length(net, difference, order, axis, False)
    whole = net.unary("CEIL", net.unary("ABS", difference))
    return reduce(net, "SUM", net.binary("MIN", whole, net.scalar(1.0, whole.dtype)), axis, False)
