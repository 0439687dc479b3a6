"""The middle element along an axis, with PyTorch's rules for NaN."""

from __future__ import annotations

import math

import torch

from singlecard.lowering.conditions import arg, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.sorting import MOST_SORTED, extremes, sorted_at_most
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

_FEW_ELEMENTS = (
    arg("self").static_shape,
    when(
        f"self has at most {MOST_SORTED} elements",
        lambda call: call.values["self"].numel() <= MOST_SORTED,
        lambda call: call.values["self"].numel(),
    ),
)


@lowers(aten.median.dim)
@accepts(sorted_at_most(MOST_SORTED))
def median_dim(net: Net, self: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
    """The middle element along one axis, and its index; the first NaN where there is any."""
    if not self.ndim:
        return [self, net.scalar(0, torch.int64)]
    x = _number_for_nan(net, self)
    place = (self.shape[dim] - 1) // 2  # the lower one of two middles
    found = [net.narrow(item, dim, place, 1) for item in extremes(net, x, place + 1, dim, False)]
    if self.dtype.is_floating_point:
        first = _first_nan(net, self, dim)
        none = net.binary("EQUAL", first, net.scalar(self.shape[dim], first.dtype))
        found = [net.where(none, found[0], _nan(net, x)), net.where(none, found[1], first)]
    return found if keepdim else [net.squeeze(item, [dim]) for item in found]


@lowers(aten.nanmedian.dim)
@accepts(sorted_at_most(MOST_SORTED))
def nanmedian_dim(net: Net, self: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
    """The middle one of the numbers along one axis, and its index; NaN where there are none."""
    if not self.ndim or not self.dtype.is_floating_point:
        return median_dim(net, self, dim, keepdim)
    numbers = net.cast(net.logical_not(net.unary("ISNAN", self)), torch.int64)
    count = net.reduce("SUM", numbers, [dim % self.ndim], True)
    zero, one = net.scalar(0, torch.int64), net.scalar(1, torch.int64)
    place = net.binary("DIV", net.sub(net.binary("MAX", count, one), one), net.scalar(2, one.dtype))
    in_order = extremes(net, _number_for_nan(net, self), self.shape[dim], dim, False)
    value, index = (net.gather_mode(item, place, "ELEMENT", dim) for item in in_order)
    value = net.where(net.binary("EQUAL", count, zero), _nan(net, self), value)
    return [value, index] if keepdim else [net.squeeze(item, [dim]) for item in (value, index)]


def _number_for_nan(net: Net, x: Tensor) -> Tensor:
    """Put infinity in NaN's place: TensorRT's top-k orders NaN as it likes."""
    if not x.dtype.is_floating_point:
        return x
    return net.where(net.unary("ISNAN", x), net.scalar(math.inf, x.dtype), x)


def _nan(net: Net, x: Tensor) -> Tensor:
    return net.scalar(math.nan, x.dtype)


def _first_nan(net: Net, x: Tensor, dim: int) -> Tensor:
    """Return the index of the first NaN along an axis, and the axis' length where there is none."""
    axis, length = dim % x.ndim, x.shape[dim]
    places = net.constant(torch.arange(length).reshape([-1, *[1] * (x.ndim - axis - 1)]))
    known = net.where(net.unary("ISNAN", x), places, net.scalar(length, torch.int64))
    return net.reduce("MIN", known, [axis], True)


@lowers(aten.median.default)
@accepts(*_FEW_ELEMENTS)
def median(net: Net, self: Tensor) -> Tensor:
    """The middle element of all; NaN where there is any."""
    return median_dim(net, net.reshape(self, [-1]), 0)[0]


@lowers(aten.nanmedian.default)
@accepts(*_FEW_ELEMENTS)
def nanmedian(net: Net, self: Tensor) -> Tensor:
    """The middle one of all numbers; NaN where there are none."""
    return nanmedian_dim(net, net.reshape(self, [-1]), 0)[0]
