"""Division and its remainders, with Python's rules and with C's."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import arg
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.unary import truncated
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten
Operand = Tensor | Number

#: A quotient of two halves, rounded to a half, may reach the next integer. In float32 it does not.
_HALF = (torch.float16, torch.bfloat16)


def _operands(net: Net, self: Operand, other: Operand) -> tuple[Tensor, ...]:
    kind = net.result.dtype
    return net.promote(self, other, dtype=torch.float32 if kind in _HALF else kind)


def _floored(net: Net, a: Tensor, b: Tensor) -> Tensor:
    return net.binary("FLOOR_DIV", a, b)


def _truncated(net: Net, a: Tensor, b: Tensor) -> Tensor:
    quotient = net.binary("DIV", a, b)  # of integers, TensorRT drops the fraction as C does
    return truncated(net, quotient) if a.dtype.is_floating_point else quotient


@lowers(aten.div.Tensor, aten.div.Scalar)
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
    return net.cast(net.sub(a, net.prod(_floored(net, a, b), b)), net.result.dtype)


@lowers(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(net: Net, self: Operand, other: Operand) -> Tensor:
    """self % other with C's rule: the sign of self."""
    a, b = _operands(net, self, other)
    return net.cast(net.sub(a, net.prod(_truncated(net, a, b), b)), net.result.dtype)
