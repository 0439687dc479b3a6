"""Truth values, and the bits of integers as far as arithmetic reaches them."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import arg, dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten
Operand = Tensor | Number


def _logical(net: Net, operation: str, self: Operand, other: Operand) -> Tensor:
    return net.binary(operation, net.operand(self, torch.bool), net.operand(other, torch.bool))


# TensorRT has no operation on the bits of integers: AND, OR and XOR take truth values only.
_of_bools = (dtype("self").one_of(torch.bool), dtype("other").one_of(torch.bool))


@lowers(aten.bitwise_and.Tensor, aten.bitwise_and.Scalar)
@accepts(*_of_bools)
def bitwise_and(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self & other, of truth values."""
    return _logical(net, "AND", self, other)


@lowers(aten.logical_and.default)
def logical_and(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self and other."""
    return _logical(net, "AND", self, other)


@lowers(aten.bitwise_or.Tensor, aten.bitwise_or.Scalar)
@accepts(*_of_bools)
def bitwise_or(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self | other, of truth values."""
    return _logical(net, "OR", self, other)


@lowers(aten.logical_or.default)
def logical_or(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self or other."""
    return _logical(net, "OR", self, other)


@lowers(aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar)
@accepts(*_of_bools)
def bitwise_xor(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self ^ other, of truth values."""
    return _logical(net, "XOR", self, other)


@lowers(aten.logical_xor.default)
def logical_xor(net: Net, self: Tensor, other: Operand) -> Tensor:
    """One of the two, and not both."""
    return _logical(net, "XOR", self, other)


@lowers(aten.bitwise_not.default)
def bitwise_not(net: Net, self: Tensor) -> Tensor:
    """~self: of an integer, -1 - self."""
    if self.dtype == torch.bool:
        return net.logical_not(self)
    return net.sub(net.scalar(-1, self.dtype), self)


@lowers(aten.logical_not.default)
def logical_not(net: Net, self: Tensor) -> Tensor:
    """not self."""
    return net.logical_not(net.cast(self, torch.bool))


#: 2 to this power still is a positive int64.
LARGEST_SHIFT = 62

_known_shift = (
    arg("other").known,
    when(
        f"the shift is 0 to {LARGEST_SHIFT}",
        lambda call: 0 <= call.values["other"] <= LARGEST_SHIFT,
        lambda call: call.values["other"],
    ),
    dtype("self").one_of(torch.int64),
)


@lowers(aten.bitwise_left_shift.Tensor_Scalar)
@accepts(*_known_shift)
def bitwise_left_shift(net: Net, self: Tensor, other: int) -> Tensor:
    """self << other, as a product."""
    return net.times(self, 1 << other)


@lowers(aten.bitwise_right_shift.Tensor_Scalar)
@accepts(*_known_shift)
def bitwise_right_shift(net: Net, self: Tensor, other: int) -> Tensor:
    """self >> other, as a division rounded down."""
    return net.binary("FLOOR_DIV", self, net.scalar(1 << other, self.dtype))
