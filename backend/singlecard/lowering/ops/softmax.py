"""Softmax and its logarithm."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten._softmax.default)
@accepts(dtype("self").floating)
def softmax(net: Net, self: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """exp(x) / sum(exp(x)) along one axis."""
    return net.softmax(net.cast(self, net.result.dtype), dim)


@lowers(aten._log_softmax.default)
@accepts(dtype("self").floating)
def log_softmax(net: Net, self: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """x - log(sum(exp(x))) along one axis, without overflow."""
    # In float32: a half has three digits, and the difference of two logarithms keeps fewer.
    x = net.cast(self, torch.float32)
    if not x.ndim:
        return net.cast(net.sub(x, x), net.result.dtype)
    shifted = net.sub(x, net.reduce("MAX", x, [dim], True))
    total = net.reduce("SUM", net.unary("EXP", shifted), [dim], True)
    return net.cast(net.sub(shifted, net.unary("LOG", total)), net.result.dtype)
