"""Division and its remainders, with Python's rules and with C's."""

from __future__ import annotations

import itertools

import torch

from singlecard.lowering.conditions import arg
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.unary import truncated
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor
from singlecard.network.types import BYTES

aten = torch.ops.aten
Operand = Tensor | Number

#: A quotient of two halves, rounded to a half, may reach the next integer. In float32 it does not.
_HALF = (torch.float16, torch.bfloat16)


def _operands(net: Net, self: Operand, other: Operand) -> tuple[Tensor, ...]:
    kind = net.result.dtype
    return net.promote(self, other, dtype=torch.float32 if kind in _HALF else kind)


def _truncated(net: Net, a: Tensor, b: Tensor) -> Tensor:
    quotient = net.binary("DIV", a, b)  # of integers, TensorRT drops the fraction as C does
    return truncated(net, quotient) if a.dtype.is_floating_point else quotient


#: A product with this, less what it grew by, is the upper half of a float32's digits (T. J. Dekker,
#: "A floating-point technique for extending the available precision", 1971).
_SPLITTER = 4097.0


def _halves(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two floats of half the digits whose sum is ``x``: their products are exact."""
    scaled = net.times(x, _SPLITTER)
    high = net.sub(scaled, net.sub(scaled, x))
    return high, net.sub(x, high)


def _less_product(net: Net, a: Tensor, q: Tensor, b: Tensor) -> Tensor:
    """Return a - q * b, where the rounding of that product could be larger than the result."""
    rest = a
    for x, y in itertools.product(_halves(net, q), _halves(net, b)):
        rest = net.sub(rest, net.prod(x, y))
    plain = net.sub(a, net.prod(q, b))  # what cannot be split is beyond 8e34
    none = net.binary("EQUAL", q, net.scalar(0.0, q.dtype))  # infinity fits into nothing
    return net.where(none, a, net.where(net.unary("ISNAN", rest), plain, rest))


def _remainder(net: Net, a: Tensor, b: Tensor) -> Tensor:
    """Return what is left of ``a``, with its sign, after taking ``b`` away as often as it goes."""
    if not a.dtype.is_floating_point:
        return net.sub(a, net.prod(_truncated(net, a, b), b))
    zero = net.scalar(0.0, a.dtype)
    # The first quotient may be rounded: up to the next integer, or to a multiple of a power of two.
    rest = a
    for _ in range(2):
        rest = _less_product(net, rest, _truncated(net, rest, b), b)
    size, negative = net.unary("ABS", b), net.binary("LESS", a, zero)
    above = net.binary("AND", negative, net.binary("GREATER", rest, zero))
    below = net.binary("AND", net.logical_not(negative), net.binary("LESS", rest, zero))
    rest = net.where(above, net.sub(rest, size), rest)
    return net.where(below, net.sum(rest, size), rest)


def _is_across(net: Net, rest: Tensor, b: Tensor) -> Tensor:
    """Tell where a remainder is on the other side of zero than the divisor."""
    zero = net.scalar(0, b.dtype)
    left = net.binary("AND", net.binary("LESS", rest, zero), net.binary("GREATER", b, zero))
    right = net.binary("AND", net.binary("GREATER", rest, zero), net.binary("LESS", b, zero))
    return net.binary("OR", left, right)


def _floored(net: Net, a: Tensor, b: Tensor) -> Tensor:
    """Return the quotient of the numbers themselves, rounded once: down."""
    if not a.dtype.is_floating_point:
        return net.binary("FLOOR_DIV", a, b)
    rest = _remainder(net, a, b)
    whole = net.unary("ROUND", net.binary("DIV", net.sub(a, rest), b))
    one, zero = net.scalar(1.0, a.dtype), net.scalar(0.0, a.dtype)
    whole = net.where(_is_across(net, rest, b), net.sub(whole, one), whole)
    return net.where(net.binary("EQUAL", b, zero), net.binary("DIV", a, b), whole)


@lowers(aten.div.Tensor, aten.div.Scalar, takes=BYTES)
def div(net: Net, self: Operand, other: Operand) -> Tensor:
    """self / other, in floating point."""
    return net.binary("DIV", *net.promote(self, other, dtype=net.result.dtype))


@lowers(aten.div.Tensor_mode, aten.div.Scalar_mode)
@accepts(arg("rounding_mode").one_of(None, "floor", "trunc"))
def div_mode(net: Net, self: Operand, other: Operand, rounding_mode: str | None) -> Tensor:
    """self / other, rounded down or towards zero."""
    if rounding_mode is None:
        return div(net, self, other)
    a, b = _operands(net, self, other)
    quotient = _floored(net, a, b) if rounding_mode == "floor" else _truncated(net, a, b)
    return net.cast(quotient, net.result.dtype)


@lowers(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def remainder(net: Net, self: Operand, other: Operand) -> Tensor:
    """self % other with Python's rule: the sign of other."""
    a, b = _operands(net, self, other)
    if not a.dtype.is_floating_point:
        return net.cast(net.sub(a, net.prod(_floored(net, a, b), b)), net.result.dtype)
    rest = _remainder(net, a, b)
    rest = net.where(_is_across(net, rest, b), net.sum(rest, b), rest)
    return net.cast(rest, net.result.dtype)


@lowers(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(net: Net, self: Operand, other: Operand) -> Tensor:
    """self % other with C's rule: the sign of self."""
    a, b = _operands(net, self, other)
    return net.cast(_remainder(net, a, b), net.result.dtype)
