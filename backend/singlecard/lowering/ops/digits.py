"""Floats taken apart: the exponent, the digits, the neighbour."""

from __future__ import annotations

import math

import torch

from singlecard.lowering.conditions import dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: Powers of two that float32 has, the smallest being no normal number.
_LOWEST, _HIGHEST = -149, 127


def _power_of_two(net: Net, exponent: Tensor) -> Tensor:
    """Return 2.0 to the power of integers from -149 to 127, from a table: exact."""
    powers = [math.ldexp(1.0, power) for power in range(_LOWEST, _HIGHEST + 1)]
    table = net.constant(torch.tensor(powers, dtype=torch.float32))
    return net.gather(table, net.sub(exponent, net.scalar(_LOWEST, exponent.dtype)), 0)


def _times_power(net: Net, x: Tensor, exponent: Tensor) -> Tensor:
    """Return x * 2**exponent in two steps, neither of which is out of range."""
    first = net.binary("FLOOR_DIV", exponent, net.scalar(2, exponent.dtype))
    rest = net.sub(exponent, first)
    return net.prod(net.prod(x, _power_of_two(net, first)), _power_of_two(net, rest))


def _taken_apart(net: Net, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return digits from 0.5 to 1 and the int32 exponent of positive float32 numbers."""
    kind = torch.int32
    guess = net.unary("FLOOR", net.times(net.unary("LOG", size), 1 / math.log(2)))
    exponent = net.sum(net.cast(guess, kind), net.scalar(1, kind))
    digits = _times_power(net, size, net.sub(net.scalar(0, kind), exponent))
    # The logarithm is rounded: the guess may be one too low, or too high.
    low, high = net.scalar(0.5, size.dtype), net.scalar(1.0, size.dtype)
    above = net.logical_not(net.binary("LESS", digits, high))
    below = net.binary("LESS", digits, low)
    one, none = net.scalar(1, kind), net.scalar(0, kind)
    exponent = net.sum(exponent, net.where(above, one, none))
    exponent = net.sub(exponent, net.where(below, one, none))
    digits = net.where(above, net.times(digits, 0.5), digits)
    return net.where(below, net.times(digits, 2), digits), exponent


def _ordinary(net: Net, x: Tensor) -> Tensor:
    """Tell which numbers have an exponent: neither zero nor infinite, and not NaN."""
    odd = net.binary("OR", net.unary("ISINF", x), net.unary("ISNAN", x))
    odd = net.binary("OR", odd, net.binary("EQUAL", x, net.scalar(0.0, x.dtype)))
    return net.logical_not(odd)


@lowers(aten.frexp.Tensor)
@accepts(dtype("self").floating)
def frexp(net: Net, self: Tensor) -> list[Tensor]:
    """Digits from 0.5 to 1 and exponents, so that self = digits * 2**exponent."""
    x = net.cast(self, torch.float32)
    is_ordinary = _ordinary(net, x)
    one = net.scalar(1.0, x.dtype)
    digits, exponent = _taken_apart(net, net.where(is_ordinary, net.unary("ABS", x), one))
    negative = net.binary("LESS", x, net.scalar(0.0, x.dtype))
    digits = net.where(negative, net.negate(digits), digits)
    return [
        net.cast(net.where(is_ordinary, digits, x), self.dtype),
        net.where(is_ordinary, exponent, net.scalar(0, torch.int32)),
    ]


#: Of each type: digits, the exponent of the smallest number, and the largest number.
_FORMS = {
    torch.float32: (24, -149, torch.finfo(torch.float32).max),
    torch.float16: (11, -24, torch.finfo(torch.float16).max),
}


@lowers(aten.nextafter.default)
@accepts(dtype("self").one_of(*_FORMS), dtype("other").one_of(*_FORMS))
def nextafter(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """The neighbour of self in the direction of other."""
    kind = net.result.dtype
    digits_of, lowest, largest = _FORMS[kind]
    a, b = (net.cast(net.cast(item, kind), torch.float32) for item in (self, other))
    zero = net.scalar(0.0, a.dtype)
    size = net.unary("ABS", a)
    is_ordinary = _ordinary(net, a)
    digits, exponent = _taken_apart(net, net.where(is_ordinary, size, net.scalar(1.0, a.dtype)))
    up, negative = net.binary("GREATER", b, a), net.binary("LESS", a, zero)
    grows = net.binary("XOR", up, negative)
    # Below a power of two, numbers stand twice as close.
    at_power = net.binary("EQUAL", digits, net.scalar(0.5, a.dtype))
    closer = net.binary("AND", at_power, net.logical_not(grows))
    place = net.sub(exponent, net.scalar(digits_of, exponent.dtype))
    place = net.sub(place, net.cast(closer, place.dtype))
    step = _power_of_two(net, net.binary("MAX", place, net.scalar(lowest, place.dtype)))
    moved = net.where(grows, net.sum(size, step), net.sub(size, step))
    if kind == torch.float16:  # what is beyond its largest number is rounded to that, not away
        beyond = net.binary("GREATER", moved, net.scalar(largest, a.dtype))
        moved = net.where(beyond, net.scalar(math.inf, a.dtype), moved)
    moved = net.where(net.unary("ISINF", a), net.scalar(largest, a.dtype), moved)
    moved = net.where(negative, net.negate(moved), moved)
    first = net.scalar(math.ldexp(1.0, lowest), a.dtype)
    from_zero = net.where(up, first, net.negate(first))
    moved = net.where(net.binary("EQUAL", a, zero), from_zero, moved)
    moved = net.where(net.binary("EQUAL", a, b), b, moved)
    nowhere = net.binary("OR", net.unary("ISNAN", a), net.unary("ISNAN", b))
    return net.cast(net.where(nowhere, net.sum(a, b), moved), kind)
