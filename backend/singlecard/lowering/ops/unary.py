"""Functions of one value: roots, exponentials, trigonometry, rounding, conversion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from singlecard.lowering.declaration import lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor
from singlecard.network.types import BYTES

aten = torch.ops.aten


def _unary(target: Any, operation: str) -> Callable[[Net, Tensor], Tensor]:
    @lowers(target)
    def lower(net: Net, self: Tensor) -> Tensor:
        return net.unary(operation, net.cast(self, net.result.dtype))

    lower.__doc__ = f"TensorRT's {operation}; of integers, in float32."
    return lower


exp = _unary(aten.exp.default, "EXP")
log = _unary(aten.log.default, "LOG")
sqrt = _unary(aten.sqrt.default, "SQRT")
reciprocal = _unary(aten.reciprocal.default, "RECIP")
sin = _unary(aten.sin.default, "SIN")
cos = _unary(aten.cos.default, "COS")
tan = _unary(aten.tan.default, "TAN")
sinh = _unary(aten.sinh.default, "SINH")
cosh = _unary(aten.cosh.default, "COSH")
asin = _unary(aten.asin.default, "ASIN")
acos = _unary(aten.acos.default, "ACOS")
atan = _unary(aten.atan.default, "ATAN")
asinh = _unary(aten.asinh.default, "ASINH")
acosh = _unary(aten.acosh.default, "ACOSH")
atanh = _unary(aten.atanh.default, "ATANH")
erf = _unary(aten.erf.default, "ERF")


def _rounding(target: Any, operation: str) -> Callable[[Net, Tensor], Tensor]:
    @lowers(target)
    def lower(net: Net, self: Tensor) -> Tensor:
        return net.unary(operation, self) if self.dtype.is_floating_point else self

    lower.__doc__ = f"TensorRT's {operation}; integers stay as they are."
    return lower


floor = _rounding(aten.floor.default, "FLOOR")
ceil = _rounding(aten.ceil.default, "CEIL")
round_ = _rounding(aten.round.default, "ROUND")


@lowers(aten.round.decimals)
def round_decimals(net: Net, self: Tensor, decimals: int) -> Tensor:
    """Rounded to decimal places, those before the point included."""
    if not self.dtype.is_floating_point:
        return self
    power = net.scalar(float(10 ** abs(decimals)), torch.float32)
    x = net.cast(self, torch.float32)  # 10**5 is no half
    first, second = ("PROD", "DIV") if decimals > 0 else ("DIV", "PROD")
    scaled = net.unary("ROUND", net.binary(first, x, power))
    return net.cast(net.binary(second, scaled, power), self.dtype)


def truncated(net: Net, x: Tensor) -> Tensor:
    """Return floats without their fractions."""
    negative = net.binary("LESS", x, net.scalar(0.0, x.dtype))
    return net.where(negative, net.unary("CEIL", x), net.unary("FLOOR", x))


@lowers(aten.trunc.default)
def trunc(net: Net, self: Tensor) -> Tensor:
    """self without its fraction."""
    return truncated(net, self) if self.dtype.is_floating_point else self


@lowers(aten.abs.default)
def absolute(net: Net, self: Tensor) -> Tensor:
    """|self|."""
    return self if self.dtype == torch.bool else net.unary("ABS", self)


@lowers(aten.sign.default)
def sign(net: Net, self: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return self if self.dtype == torch.bool else net.unary("SIGN", self)


@lowers(aten.rsqrt.default)
def rsqrt(net: Net, self: Tensor) -> Tensor:
    """1 / sqrt(self)."""
    return net.unary("RECIP", net.unary("SQRT", net.cast(self, net.result.dtype)))


@lowers(aten.log2.default)
def log2(net: Net, self: Tensor) -> Tensor:
    """Logarithm to the base 2."""
    logarithm = net.unary("LOG", net.cast(self, torch.float32))
    return net.cast(net.times(logarithm, 1 / math.log(2)), net.result.dtype)


@lowers(aten.log10.default)
def log10(net: Net, self: Tensor) -> Tensor:
    """Logarithm to the base 10."""
    logarithm = net.unary("LOG", net.cast(self, torch.float32))
    return net.cast(net.times(logarithm, 1 / math.log(10)), net.result.dtype)


@lowers(aten.exp2.default)
def exp2(net: Net, self: Tensor) -> Tensor:
    """2 ** self."""
    x = net.cast(self, net.result.dtype)
    return net.binary("POW", net.scalar(2.0, x.dtype), x)


def _is_small(net: Net, x: Tensor) -> Tensor:
    return net.binary("LESS", net.unary("ABS", x), net.scalar(0.5, x.dtype))


@lowers(aten.log1p.default)
def log1p(net: Net, self: Tensor) -> Tensor:
    """log(1 + self), which near zero is 2 atanh(x / (2 + x)): nothing is rounded away."""
    return net.cast(log1p_of(net, net.cast(self, torch.float32)), net.result.dtype)


def log1p_of(net: Net, x: Tensor) -> Tensor:
    """Return log(1 + x) of float32 numbers."""
    small = _is_small(net, x)
    ratio = net.binary("DIV", x, net.sum(x, net.scalar(2.0, x.dtype)))
    # Large values stay out of atanh, whose infinities would cost a NaN flag in strict builds.
    near = net.times(net.unary("ATANH", net.where(small, ratio, net.scalar(0.0, x.dtype))), 2)
    far = net.unary("LOG", net.sum(x, net.scalar(1.0, x.dtype)))
    return net.where(small, near, far)


@lowers(aten.expm1.default)
def expm1(net: Net, self: Tensor) -> Tensor:
    """exp(self) - 1, which near zero is tanh(x / 2) (exp(x) + 1): nothing is rounded away."""
    x = net.cast(self, torch.float32)
    one = net.scalar(1.0, x.dtype)
    power = net.unary("EXP", x)
    near = net.prod(net.activation("TANH", net.times(x, 0.5)), net.sum(power, one))
    result = net.where(_is_small(net, x), near, net.sub(power, one))
    return net.cast(result, net.result.dtype)


@lowers(aten.angle.default)
def angle(net: Net, self: Tensor) -> Tensor:
    """The angle of a real number: pi where it is negative, else 0; NaN stays."""
    x = net.cast(self, net.result.dtype)
    zero = net.scalar(0.0, x.dtype)
    turned = net.where(net.binary("LESS", x, zero), net.scalar(math.pi, x.dtype), zero)
    return net.where(net.unary("ISNAN", x), x, turned)


@lowers(
    aten._to_copy.default,
    torch.ops.prims.convert_element_type.default,
    takes=BYTES,
    gives=BYTES,
)
def to_copy(net: Net, self: Tensor, *_: Any) -> Tensor:
    """Conversion to another type; places and layouts mean nothing inside an engine."""
    kind = net.result.dtype
    return _to_byte(net, self, kind) if kind in BYTES else net.cast(self, kind)


def _to_byte(net: Net, x: Tensor, kind: torch.dtype) -> Tensor:
    """Return the number that the lowest eight bits of an integer are, which is what is kept."""
    if x.dtype.is_floating_point or x.dtype == torch.bool:
        x = net.cast(x, torch.int32)
    lowest, span = (net.scalar(value, x.dtype) for value in (BYTES[kind], 256))
    above = net.sub(x, lowest)
    wrapped = net.sub(x, net.prod(net.binary("FLOOR_DIV", above, span), span))
    return net.cast(wrapped, torch.int32)


@lowers(aten.clone.default, aten.alias.default, aten.detach.default)
def clone(net: Net, self: Tensor, *_: Any) -> Tensor:
    """The value itself."""
    return self
