"""The logarithm of the gamma function, and its slope, in float32."""

from __future__ import annotations

import math

import torch

from singlecard.lowering.declaration import lowers
from singlecard.lowering.ops.comparison import sign_bit
from singlecard.lowering.ops.special import polynomial
from singlecard.lowering.ops.unary import log1p_of
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

_EULER = 0.5772156649015329

#: Riemann's zeta function less one, at 2, 3, ...: the Taylor series of the logarithm of the gamma
#: function at 2 is (1 - Euler's constant) t + the sum of (-1)^k (zeta(k) - 1) / k t^k
#: (M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 6.1.33).
_ZETA_LESS_ONE = (
    0.6449340668482264,
    0.2020569031595943,
    0.0823232337111382,
    0.0369277551433699,
    0.0173430619844491,
    0.0083492773819228,
    0.0040773561979443,
    0.0020083928260822,
    0.0009945751278180,
    0.0004941886041194,
    0.0002460865533080,
    0.0001227133475784,
    0.0000612481350587,
)

_NEAR_TWO = (
    *(
        (-1) ** power * zeta / power
        for power, zeta in reversed(list(enumerate(_ZETA_LESS_ONE, start=2)))
    ),
    1 - _EULER,
    0.0,
)

#: Stirling's series in 1 / z**2, highest power first, times 1 / z (the same, 6.1.41).
_STIRLING = (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)

#: The slope of that series (the same, 6.3.18), in 1 / z**2, times 1 / z**2.
_SLOPE = (-1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12)

#: Steps that carry an argument to where the slope's series holds.
_STEPS = 6


def _from_integer(net: Net, x: Tensor) -> Tensor:
    """Return the signed distance from the nearest integer: pi times it has the same sine."""
    return net.sub(x, net.unary("ROUND", x))


@lowers(aten.lgamma.default)
def lgamma(net: Net, self: Tensor) -> Tensor:
    """log(|gamma(self)|): a series from 0.5 to 2.5, Stirling's beyond, mirrored below."""
    x = net.cast(self, torch.float32)
    kind = x.dtype
    one, half = net.scalar(1.0, kind), net.scalar(0.5, kind)
    is_low = net.binary("LESS", x, half)
    z = net.where(is_low, net.sub(one, x), x)
    is_near_one = net.binary("LESS", z, net.scalar(1.5, kind))
    shift = net.where(is_near_one, one, net.scalar(2.0, kind))
    t = net.binary("MIN", net.sub(z, shift), half)  # what is beyond is not used
    near = polynomial(net, t, _NEAR_TWO)
    near = net.where(is_near_one, net.sub(near, log1p_of(net, t)), near)
    w = net.binary("MAX", z, net.scalar(2.5, kind))
    inverse = net.unary("RECIP", w)
    series = net.prod(polynomial(net, net.prod(inverse, inverse), _STIRLING), inverse)
    far = net.sub(net.prod(net.sub(w, half), net.unary("LOG", w)), w)
    far = net.sum(net.sum(far, net.scalar(math.log(2 * math.pi) / 2, kind)), series)
    above = net.where(net.binary("LESS", z, net.scalar(2.5, kind)), near, far)
    sine = net.unary("SIN", net.times(_from_integer(net, x), math.pi))
    mirrored = net.unary(
        "LOG", net.unary("ABS", net.binary("DIV", sine, net.scalar(math.pi, kind)))
    )
    result = net.where(is_low, net.negate(net.sum(mirrored, above)), above)
    result = net.where(net.unary("ISINF", x), net.unary("ABS", x), result)
    return net.cast(result, net.result.dtype)


@lowers(aten.digamma.default)
def digamma(net: Net, self: Tensor) -> Tensor:
    """The slope of lgamma: a series beyond 6, reached step by step, mirrored below zero."""
    x = net.cast(self, torch.float32)
    kind = x.dtype
    zero, one = net.scalar(0.0, kind), net.scalar(1.0, kind)
    is_low = net.binary("LESS", x, zero)
    z = net.where(is_low, net.sub(one, x), x)
    steps = [
        net.unary("RECIP", net.sum(z, net.scalar(float(step), kind))) for step in range(_STEPS)
    ]
    w = net.sum(z, net.scalar(float(_STEPS), kind))
    inverse = net.unary("RECIP", w)
    square = net.prod(inverse, inverse)
    series = net.prod(polynomial(net, square, _SLOPE), square)
    total = net.sub(net.sum(series, net.unary("LOG", w)), net.times(inverse, 0.5))
    for step in reversed(steps):
        total = net.sub(total, step)
    distance = _from_integer(net, x)
    turn = net.binary(
        "DIV", net.scalar(math.pi, kind), net.unary("TAN", net.times(distance, math.pi))
    )
    result = net.where(is_low, net.sub(total, turn), total)
    pole = net.binary("AND", is_low, net.binary("EQUAL", distance, zero))
    result = net.where(pole, net.scalar(math.nan, kind), result)
    ends = net.where(sign_bit(net, x), *(net.scalar(end, kind) for end in (math.inf, -math.inf)))
    result = net.where(net.binary("EQUAL", x, zero), ends, result)
    return net.cast(result, net.result.dtype)
