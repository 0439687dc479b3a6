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
    x = net.cast(self, torch.float32)
    return net.cast(_bessel(net, x, _I0_NEAR, _I0_FAR, 0, False), net.result.dtype)


#: The same, 9.8.3 and 9.8.4: I1(x) / x, and sqrt(x) exp(-x) I1(x).
_I1_NEAR = (0.00032411, 0.00301532, 0.02658733, 0.15084934, 0.51498869, 0.87890594, 0.5)
_I1_FAR = (
    -0.00420059,
    0.01787654,
    -0.02895312,
    0.02282967,
    -0.01031555,
    0.00163801,
    -0.00362018,
    -0.03988024,
    0.39894228,
)


def _bessel(
    net: Net, x: Tensor, near: tuple[float, ...], far: tuple[float, ...], order: int, scaled: bool
) -> Tensor:
    """Return a modified Bessel function of order 0 or 1, times exp(-|x|) where it is scaled."""
    size = net.unary("ABS", x)
    edge = net.scalar(3.75, size.dtype)
    inside = net.binary("MIN", size, edge)
    small = net.binary("DIV", inside, edge)
    low = polynomial(net, net.prod(small, small), near)
    low = net.prod(low, inside) if order else low
    large = net.binary("MAX", size, edge)
    high = polynomial(net, net.binary("DIV", edge, large), far)
    high = net.binary("DIV", high, net.unary("SQRT", large))
    if scaled:
        low = net.prod(low, net.unary("EXP", net.negate(inside)))
    else:
        high = net.prod(high, net.unary("EXP", large))
    result = net.where(net.binary("LESS", size, edge), low, high)
    if not order:
        return result
    return net.where(net.binary("LESS", x, net.scalar(0.0, x.dtype)), net.negate(result), result)


@lowers(aten.special_i0e.default)
def i0e(net: Net, self: Tensor) -> Tensor:
    """exp(-|self|) times the modified Bessel function of order 0."""
    x = net.cast(self, torch.float32)
    return net.cast(_bessel(net, x, _I0_NEAR, _I0_FAR, 0, True), net.result.dtype)


@lowers(aten.special_i1.default)
def i1(net: Net, self: Tensor) -> Tensor:
    """Modified Bessel function of order 1."""
    x = net.cast(self, torch.float32)
    return net.cast(_bessel(net, x, _I1_NEAR, _I1_FAR, 1, False), net.result.dtype)


@lowers(aten.special_i1e.default)
def i1e(net: Net, self: Tensor) -> Tensor:
    """exp(-|self|) times the modified Bessel function of order 1."""
    x = net.cast(self, torch.float32)
    return net.cast(_bessel(net, x, _I1_NEAR, _I1_FAR, 1, True), net.result.dtype)


#: S. L. Moshier, Cephes, ndtri.c: quotients of polynomials, highest power first, of (y - 0.5)**2 in
#: the middle, and of 1 / x for x = sqrt(-2 log y) up to 8, and beyond.
_NDTRI_MIDDLE = (
    (-59.9633501014107895, 98.0010754185999662, -56.676285746907029, 13.9312609387279680)
    + (-1.23916583867381258,),
    (1.0, 1.95448858338141760, 4.67627912898881538, 86.3602421390890591, -225.462687854119371)
    + (200.260212380060660, -82.0372256168333340, 15.9056225126211696, -1.18331621121330003),
)
_NDTRI_TAIL = (
    (4.05544892305962420, 31.5251094599893866, 57.1628192246421289, 44.0805073893200835)
    + (14.6849561928858024, 2.18663306850790268, -0.140256079171354495)
    + (-0.0350424626827848203, -0.000857456785154685414),
    (1.0, 15.7799883256466750, 45.3907635128879211, 41.3172038254672030, 15.0425385692907503)
    + (2.50464946208309416, -0.142182922854787788, -0.0380806407691578277)
    + (-0.000933259480895457427,),
)
_NDTRI_FAR = (
    (3.23774891776946036, 6.91522889068984211, 3.93881025292474443, 1.33303460815807542)
    + (0.201485389549179082, 0.0123716634817820021, 0.000301581553508235416)
    + (2.65806974686737551e-06, 6.23974539184983294e-09),
    (1.0, 6.02427039364742014, 3.67983563856160859, 1.37702099489081330, 0.216236993594496636)
    + (0.0134204006088543189, 0.000328014464682127739, 2.89247864745380684e-06)
    + (6.79019408009981275e-09,),
)


def _quotient(net: Net, x: Tensor, parts: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    return net.binary("DIV", *(polynomial(net, x, part) for part in parts))


@lowers(aten.special_ndtri.default)
def ndtri(net: Net, self: Tensor) -> Tensor:
    """The value below which a normal distribution has the share self."""
    y = net.cast(self, torch.float32)
    zero, half, one = (net.scalar(value, y.dtype) for value in (0.0, 0.5, 1.0))
    edge = math.exp(-2)
    is_high = net.binary("GREATER", y, net.scalar(1 - edge, y.dtype))
    tail = net.where(is_high, net.sub(one, y), y)
    middle = net.sub(tail, half)
    square = net.prod(middle, middle)
    bend = net.prod(square, _quotient(net, square, _NDTRI_MIDDLE))
    near = net.times(net.sum(middle, net.prod(middle, bend)), math.sqrt(2 * math.pi))
    lowest = net.scalar(torch.finfo(torch.float32).tiny, y.dtype)
    inside = net.binary("MIN", net.binary("MAX", tail, lowest), net.scalar(edge, y.dtype))
    # Numbers too small to be normal have a logarithm too, but none is taken of zero and below.
    inside = net.where(net.binary("GREATER", tail, zero), net.binary("MIN", tail, inside), inside)
    x = net.unary("SQRT", net.times(net.unary("LOG", inside), -2.0))
    z = net.unary("RECIP", x)
    is_far = net.binary("LESS", net.scalar(8.0, y.dtype), x)
    share = net.where(is_far, _quotient(net, z, _NDTRI_FAR), _quotient(net, z, _NDTRI_TAIL))
    far = net.sub(net.sub(x, net.prod(net.unary("LOG", x), z)), net.prod(z, share))
    far = net.where(is_high, far, net.negate(far))
    result = net.where(net.binary("GREATER", tail, net.scalar(edge, y.dtype)), near, far)
    for end, value in ((zero, -math.inf), (one, math.inf)):
        result = net.where(net.binary("EQUAL", y, end), net.scalar(value, y.dtype), result)
    outside = net.binary("OR", net.binary("LESS", y, zero), net.binary("GREATER", y, one))
    outside = net.binary("OR", outside, net.unary("ISNAN", y))
    return net.cast(net.where(outside, net.scalar(math.nan, y.dtype), result), net.result.dtype)
