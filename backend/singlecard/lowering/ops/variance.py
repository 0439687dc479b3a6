"""Variance and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.reduction import reduce
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

_conditions = (dtype("self").floating, arg("self").static_shape)


def _moments(
    net: Net, x: Tensor, dim: Sequence[int] | None, correction: Number | None, keepdim: bool
) -> tuple[Tensor, Tensor]:
    """Return variance and mean, in float32."""
    x = net.cast(x, torch.float32)
    axes = [axis % x.ndim for axis in dim or range(x.ndim)] if x.ndim else []
    centre = reduce(net, "AVG", x, axes, True)
    deviation = net.sub(x, centre)
    squares = reduce(net, "SUM", net.prod(deviation, deviation), axes, keepdim)
    divisor = math.prod(x.shape[axis] for axis in axes) - (1 if correction is None else correction)
    variance = net.binary("DIV", squares, net.scalar(float(max(divisor, 0)), x.dtype))
    return variance, centre if keepdim else net.squeeze(centre, axes)


@lowers(aten.var.correction)
@accepts(*_conditions)
def var(
    net: Net,
    self: Tensor,
    dim: Sequence[int] | None = None,
    correction: Number | None = None,
    keepdim: bool = False,
) -> Tensor:
    """Mean squared distance from the mean."""
    variance, _ = _moments(net, self, dim, correction, keepdim)
    return net.cast(variance, net.result.dtype)


@lowers(aten.var_mean.correction)
@accepts(*_conditions)
def var_mean(
    net: Net,
    self: Tensor,
    dim: Sequence[int] | None = None,
    correction: Number | None = None,
    keepdim: bool = False,
) -> list[Tensor]:
    """Variance and mean."""
    moments = _moments(net, self, dim, correction, keepdim)
    return [net.cast(moment, self.dtype) for moment in moments]
