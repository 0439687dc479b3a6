"""Error functions and their kin, which TensorRT has no layers for: short series in float32."""

from __future__ import annotations

import math

import torch

from singlecard.lowering.declaration import lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


def polynomial(net: Net, x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Evaluate a polynomial, highest power first, by Horner's rule."""
    total = net.scalar(coefficients[0], x.dtype)
    for coefficient in coefficients[1:]:
        total = net.sum(net.prod(total, x), net.scalar(coefficient, x.dtype))
    return total


#: W. H. Press et al., Numerical Recipes, 2nd edition, section 6.2: the exponent of erfc as a
#: polynomial of t = 1 / (1 + x / 2), highest power first. The relative error is below 1.2e-7.
_ERFC = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)


def _scaled_tail(net: Net, size: Tensor) -> Tensor:
    """Return exp(x * x) * erfc(x) of values that are not negative."""
    one = net.scalar(1.0, size.dtype)
    t = net.unary("RECIP", net.sum(net.times(size, 0.5), one))
    return net.prod(t, net.unary("EXP", polynomial(net, t, _ERFC)))


def _mirrored(net: Net, x: Tensor, tail: Tensor, whole: Tensor) -> Tensor:
    """Return the tail, and on the other side of zero what is left of the whole."""
    negative = net.binary("LESS", x, net.scalar(0.0, x.dtype))
    return net.where(negative, net.sub(whole, tail), tail)


@lowers(aten.erfc.default)
def erfc(net: Net, self: Tensor) -> Tensor:
    """1 - erf(self), without the rounding of that difference."""
    x = net.cast(self, torch.float32)
    size = net.unary("ABS", x)
    decay = net.unary("EXP", net.negate(net.prod(size, size)))
    tail = net.prod(_scaled_tail(net, size), decay)
    return net.cast(_mirrored(net, x, tail, net.scalar(2.0, x.dtype)), net.result.dtype)


@lowers(aten.special_erfcx.default)
def erfcx(net: Net, self: Tensor) -> Tensor:
    """exp(self * self) * erfc(self), which stays small where its factors do not."""
    x = net.cast(self, torch.float32)
    growth = net.unary("EXP", net.prod(x, x))
    tail = _scaled_tail(net, net.unary("ABS", x))
    return net.cast(_mirrored(net, x, tail, net.times(growth, 2)), net.result.dtype)


#: M. Giles, "Approximating the erfinv function" (GPU Computing Gems, Jade edition, 2011): in
#: w - 2.5 for w = -log(1 - x * x) < 5, and in sqrt(w) - 3 beyond, highest power first.
_ERFINV_NEAR = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_FAR = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def _inverse_erf(net: Net, x: Tensor) -> Tensor:
    one = net.scalar(1.0, x.dtype)
    w = net.negate(net.unary("LOG", net.prod(net.sub(one, x), net.sum(one, x))))
    near = polynomial(net, net.sub(w, net.scalar(2.5, x.dtype)), _ERFINV_NEAR)
    far = polynomial(net, net.sub(net.unary("SQRT", w), net.scalar(3.0, x.dtype)), _ERFINV_FAR)
    factor = net.where(net.binary("LESS", w, net.scalar(5.0, x.dtype)), near, far)
    at_end = net.binary("EQUAL", net.unary("ABS", x), one)
    factor = net.where(at_end, net.scalar(math.inf, x.dtype), factor)
    return net.prod(factor, x)


@lowers(aten.erfinv.default)
def erfinv(net: Net, self: Tensor) -> Tensor:
    """The inverse of erf."""
    return net.cast(_inverse_erf(net, net.cast(self, torch.float32)), net.result.dtype)


#: M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 9.8.1 and 9.8.2: the Bessel
#: function in (x / 3.75) ** 2 up to 3.75, and sqrt(x) exp(-x) I0(x) in 3.75 / x beyond.
_I0_NEAR = (0.0045813, 0.0360768, 0.2659732, 1.2067492, 3.0899424, 3.5156229, 1.0)
_I0_FAR = (
    0.00392377,
    -0.01647633,
    0.02635537,
    -0.02057706,
    0.00916281,
    -0.00157565,
    0.00225319,
    0.01328592,
    0.39894228,
)


@lowers(aten.i0.default)
def i0(net: Net, self: Tensor) -> Tensor:
    """Modified Bessel function of order 0, as Kaiser windows use it."""
    size = net.unary("ABS", net.cast(self, torch.float32))
    edge = net.scalar(3.75, size.dtype)
    small = net.binary("DIV", net.binary("MIN", size, edge), edge)
    near = polynomial(net, net.prod(small, small), _I0_NEAR)
    large = net.binary("MAX", size, edge)
    scale = net.binary("DIV", net.unary("EXP", large), net.unary("SQRT", large))
    far = net.prod(scale, polynomial(net, net.binary("DIV", edge, large), _I0_FAR))
    return net.cast(net.where(net.binary("LESS", size, edge), near, far), net.result.dtype)
