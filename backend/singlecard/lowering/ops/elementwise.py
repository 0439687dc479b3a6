"""Arithmetic and comparison, element by element."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten
Operand = Tensor | Number


def _scaled(net: Net, other: Operand, alpha: Number, kind: torch.dtype) -> Tensor:
    return net.times(net.operand(other, kind), alpha)


@lowers(aten.add.Tensor, aten.add.Scalar)
@accepts(arg("alpha").known)
def add(net: Net, self: Tensor, other: Operand, alpha: Number = 1) -> Tensor:
    """self + alpha * other."""
    kind = net.result.dtype
    if kind == torch.bool:
        return net.binary("OR", self, net.operand(other, kind))
    return net.sum(net.cast(self, kind), _scaled(net, other, alpha, kind))


@lowers(aten.sub.Tensor, aten.sub.Scalar)
@accepts(dtype("self").numeric, arg("alpha").known)
def sub(net: Net, self: Tensor, other: Operand, alpha: Number = 1) -> Tensor:
    """self - alpha * other."""
    kind = net.result.dtype
    return net.sub(net.cast(self, kind), _scaled(net, other, alpha, kind))


@lowers(aten.rsub.Tensor, aten.rsub.Scalar)
@accepts(dtype("self").numeric, arg("alpha").known)
def rsub(net: Net, self: Tensor, other: Operand, alpha: Number = 1) -> Tensor:
    """other - alpha * self."""
    kind = net.result.dtype
    return net.sub(net.operand(other, kind), net.times(net.cast(self, kind), alpha))


@lowers(aten.mul.Tensor, aten.mul.Scalar)
def mul(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self * other."""
    a, b = net.promote(self, other, dtype=net.result.dtype)
    return net.binary("AND" if net.result.dtype == torch.bool else "PROD", a, b)


@lowers(aten.div.Tensor, aten.div.Scalar)
def div(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self / other, in floating point."""
    a, b = net.promote(self, other, dtype=net.result.dtype)
    return net.binary("DIV", a, b)


@lowers(aten.neg.default)
@accepts(dtype("self").numeric)
def neg(net: Net, self: Tensor) -> Tensor:
    """-self."""
    return net.negate(self)


@lowers(aten.maximum.default)
def maximum(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The larger of two."""
    a, b = net.promote(self, other)
    return net.binary("OR" if a.dtype == torch.bool else "MAX", a, b)


@lowers(aten.minimum.default)
def minimum(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The smaller of two."""
    a, b = net.promote(self, other)
    return net.binary("AND" if a.dtype == torch.bool else "MIN", a, b)


@lowers(aten.pow.Tensor_Scalar)
@accepts(dtype("self").floating, arg("exponent").known)
def pow_scalar(net: Net, self: Tensor, exponent: Number) -> Tensor:
    """self ** exponent: small whole powers as products, roots as roots."""
    if exponent in (2, 3):
        square = net.prod(self, self)
        return square if exponent == 2 else net.prod(square, self)
    if exponent in (0.5, -0.5):
        root = net.unary("SQRT", self)
        return root if exponent == 0.5 else net.unary("RECIP", root)
    if exponent == -1:
        return net.unary("RECIP", self)
    return net.binary("POW", self, net.scalar(exponent, self.dtype, self.ndim))


@lowers(aten.pow.Tensor_Tensor)
@accepts(dtype("self").floating, dtype("exponent").floating)
def pow_tensor(net: Net, self: Tensor, exponent: Tensor) -> Tensor:
    """self ** exponent."""
    return net.binary("POW", *net.promote(self, exponent))


def _compare(net: Net, operation: str, self: Tensor, other: Operand, negated: bool) -> Tensor:
    a, b = net.promote(self, other)
    if a.dtype == torch.bool:  # TensorRT orders numbers only
        a, b = net.cast(a, torch.int32), net.cast(b, torch.int32)
    result = net.binary(operation, a, b)
    return net.logical_not(result) if negated else result


@lowers(aten.eq.Tensor, aten.eq.Scalar)
def eq(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self == other."""
    return _compare(net, "EQUAL", self, other, False)


@lowers(aten.ne.Tensor, aten.ne.Scalar)
def ne(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self != other."""
    return _compare(net, "EQUAL", self, other, True)


@lowers(aten.gt.Tensor, aten.gt.Scalar)
def gt(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self > other."""
    return _compare(net, "GREATER", self, other, False)


@lowers(aten.lt.Tensor, aten.lt.Scalar)
def lt(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self < other."""
    return _compare(net, "LESS", self, other, False)


def _or_equal(net: Net, operation: str, self: Tensor, other: Operand) -> Tensor:
    # Not "not less": that would be true for NaN, which PyTorch calls false.
    strict = _compare(net, operation, self, other, False)
    return net.binary("OR", strict, _compare(net, "EQUAL", self, other, False))


@lowers(aten.ge.Tensor, aten.ge.Scalar)
def ge(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self >= other."""
    return _or_equal(net, "GREATER", self, other)


@lowers(aten.le.Tensor, aten.le.Scalar)
def le(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self <= other."""
    return _or_equal(net, "LESS", self, other)


@lowers(aten.where.self)
def where(net: Net, condition: Tensor, self: Operand, other: Operand) -> Tensor:
    """self where condition, other elsewhere."""
    a, b = net.promote(self, other, dtype=net.result.dtype)
    return net.where(net.cast(condition, torch.bool), a, b)


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(net: Net, self: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """value where mask, self elsewhere."""
    return net.where(mask, net.operand(value, self.dtype), self)


def _logical(net: Net, operation: str, self: Tensor, other: Operand) -> Tensor:
    a = net.cast(self, torch.bool)
    return net.binary(operation, a, net.operand(other, torch.bool))


@lowers(aten.bitwise_and.Tensor, aten.bitwise_and.Scalar)
@accepts(dtype("self").one_of(torch.bool))
def bitwise_and(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self & other, of truth values."""
    return _logical(net, "AND", self, other)


@lowers(aten.logical_and.default)
def logical_and(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self and other."""
    return _logical(net, "AND", self, other)


@lowers(aten.bitwise_or.Tensor, aten.bitwise_or.Scalar)
@accepts(dtype("self").one_of(torch.bool))
def bitwise_or(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self | other, of truth values."""
    return _logical(net, "OR", self, other)


@lowers(aten.logical_or.default)
def logical_or(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self or other."""
    return _logical(net, "OR", self, other)


@lowers(aten.bitwise_not.default)
@accepts(dtype("self").one_of(torch.bool))
def bitwise_not(net: Net, self: Tensor) -> Tensor:
    """~self, of truth values."""
    return net.logical_not(self)


@lowers(aten.logical_not.default)
def logical_not(net: Net, self: Tensor) -> Tensor:
    """not self."""
    return net.logical_not(net.cast(self, torch.bool))


@lowers(aten.clamp.default, aten.clamp.Tensor)
def clamp(
    net: Net, self: Tensor, min: Operand | None = None, max: Operand | None = None
) -> Tensor:
    """self between min and max; where they cross, max."""
    x = net.cast(self, net.result.dtype)
    if min is not None:
        x = net.binary("MAX", x, net.operand(min, x.dtype))
    return x if max is None else net.binary("MIN", x, net.operand(max, x.dtype))
