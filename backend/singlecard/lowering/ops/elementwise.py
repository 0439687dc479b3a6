"""Arithmetic, element by element: sums, products, distances."""

from __future__ import annotations

import math

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.comparison import sign_bit
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor
from singlecard.network.types import BYTES

aten = torch.ops.aten
Operand = Tensor | Number


def _scaled(net: Net, value: Operand, alpha: Number, kind: torch.dtype) -> Tensor:
    return net.times(net.operand(value, kind), alpha)


@lowers(aten.add.Tensor, aten.add.Scalar, takes=BYTES)
@accepts(arg("alpha").known)
def add(net: Net, self: Operand, other: Operand, alpha: Number = 1) -> Tensor:
    """self + alpha * other."""
    kind = net.result.dtype
    if kind == torch.bool:
        left = net.operand(self, kind)
        return net.binary("OR", left, net.operand(other, kind)) if alpha else left
    return net.sum(net.operand(self, kind), _scaled(net, other, alpha, kind))


@lowers(aten.sub.Tensor, aten.sub.Scalar, takes=BYTES)
@accepts(arg("alpha").known)
def sub(net: Net, self: Operand, other: Operand, alpha: Number = 1) -> Tensor:
    """self - alpha * other."""
    kind = net.result.dtype
    return net.sub(net.operand(self, kind), _scaled(net, other, alpha, kind))


@lowers(aten.rsub.Tensor, aten.rsub.Scalar)
@accepts(arg("alpha").known)
def rsub(net: Net, self: Tensor, other: Operand, alpha: Number = 1) -> Tensor:
    """other - alpha * self."""
    kind = net.result.dtype
    return net.sub(net.operand(other, kind), _scaled(net, self, alpha, kind))


@lowers(aten.mul.Tensor, aten.mul.Scalar, takes=BYTES)
def mul(net: Net, self: Operand, other: Operand) -> Tensor:
    """self * other."""
    a, b = net.promote(self, other, dtype=net.result.dtype)
    return net.binary("AND" if net.result.dtype == torch.bool else "PROD", a, b)


@lowers(aten.neg.default)
@accepts(dtype("self").numeric)
def neg(net: Net, self: Tensor) -> Tensor:
    """-self."""
    return net.negate(self)


@lowers(aten.hypot.default)
@accepts(dtype("self").floating)
def hypot(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """sqrt(self**2 + other**2), without overflow on the way."""
    sides = [net.unary("ABS", side) for side in net.promote(self, other, dtype=torch.float32)]
    longer, shorter = net.binary("MAX", *sides), net.binary("MIN", *sides)
    smallest = net.scalar(torch.finfo(torch.float32).tiny, longer.dtype)
    ratio = net.binary("DIV", shorter, net.binary("MAX", longer, smallest))
    one = net.scalar(1.0, ratio.dtype)
    length = net.prod(longer, net.unary("SQRT", net.sum(one, net.prod(ratio, ratio))))
    infinite = net.binary("OR", *(net.unary("ISINF", side) for side in sides))  # also beside NaN
    length = net.where(infinite, net.scalar(math.inf, length.dtype), length)
    return net.cast(length, net.result.dtype)


@lowers(aten.atan2.default)
def atan2(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The angle of the point (other, self), in (-pi, pi]."""
    y, x = net.promote(self, other, dtype=torch.float32)
    limit = torch.finfo(torch.float32).max
    # Finite stand-ins for infinities have the same angle, and their quotient is a number.
    high, low = (
        net.binary(
            "MIN", net.binary("MAX", v, net.scalar(-limit, v.dtype)), net.scalar(limit, v.dtype)
        )
        for v in (y, x)
    )
    zero = net.scalar(0.0, y.dtype)
    at_axis = net.binary("EQUAL", low, zero)
    safe = net.where(at_axis, net.scalar(1.0, y.dtype), low)
    angle = net.unary("ATAN", net.binary("DIV", high, safe))
    upright = net.prod(net.unary("SIGN", high), net.scalar(math.pi / 2, y.dtype))
    half_turn = net.where(sign_bit(net, y), *_plus_minus(net, math.pi, y.dtype))
    turned = net.where(net.binary("LESS", low, zero), net.sum(angle, half_turn), angle)
    angle = net.where(at_axis, upright, turned)
    at_origin = net.binary("AND", at_axis, net.binary("EQUAL", high, zero))
    behind = net.where(sign_bit(net, x), half_turn, zero)
    return net.cast(net.where(at_origin, behind, angle), net.result.dtype)


def _plus_minus(net: Net, value: float, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return -value and value: what a true and a false sign bit choose."""
    return net.scalar(-value, kind), net.scalar(value, kind)


@lowers(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(net: Net, self: Tensor, other: Operand) -> Tensor:
    """|self| with the sign of other."""
    kind = net.result.dtype
    size = net.unary("ABS", net.cast(self, kind))
    return net.where(sign_bit(net, net.operand(other, kind)), net.negate(size), size)


@lowers(aten.ldexp.Tensor)
def ldexp(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """self * 2**other."""
    kind = net.result.dtype
    power = net.binary("POW", net.scalar(2.0, kind), net.cast(other, kind))
    return net.prod(net.cast(self, kind), power)
