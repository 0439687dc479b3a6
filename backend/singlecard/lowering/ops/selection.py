"""One of several values at each place: where, masks, limits, extremes of two."""

from __future__ import annotations

import torch

from singlecard.lowering.declaration import lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten
Operand = Tensor | Number


@lowers(aten.where.self)
def where(net: Net, condition: Tensor, self: Operand, other: Operand) -> Tensor:
    """self where condition, other elsewhere."""
    a, b = net.promote(self, other, dtype=net.result.dtype)
    return net.where(net.cast(condition, torch.bool), a, b)


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(net: Net, self: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """value where mask, self elsewhere."""
    return net.where(mask, net.operand(value, self.dtype), self)


def _extreme(net: Net, operation: str, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.bool:
        return net.binary("OR" if operation == "MAX" else "AND", a, b)
    return net.binary(operation, a, b)


@lowers(aten.maximum.default)
def maximum(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The larger of two."""
    return _extreme(net, "MAX", *net.promote(self, other))


@lowers(aten.minimum.default)
def minimum(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The smaller of two."""
    return _extreme(net, "MIN", *net.promote(self, other))


def _unless_nan(net: Net, operation: str, self: Tensor, other: Tensor) -> Tensor:
    a, b = net.promote(self, other)
    extreme = _extreme(net, operation, a, b)
    if not a.dtype.is_floating_point:
        return extreme
    or_other = net.where(net.unary("ISNAN", a), b, extreme)
    return net.where(net.unary("ISNAN", b), a, or_other)


@lowers(aten.fmax.default)
def fmax(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The larger of two; a number before NaN."""
    return _unless_nan(net, "MAX", self, other)


@lowers(aten.fmin.default)
def fmin(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The smaller of two; a number before NaN."""
    return _unless_nan(net, "MIN", self, other)


@lowers(aten.clamp.default, aten.clamp.Tensor)
def clamp(net: Net, self: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """self between min and max; where they cross, max."""
    x = net.cast(self, net.result.dtype)
    if min is not None:
        x = _extreme(net, "MAX", x, net.operand(min, x.dtype))
    return x if max is None else _extreme(net, "MIN", x, net.operand(max, x.dtype))


@lowers(aten.hardtanh.default)
def hardtanh(net: Net, self: Tensor, min_val: Number = -1, max_val: Number = 1) -> Tensor:
    """self between min_val and max_val."""
    return clamp(net, self, min_val, max_val)
