"""Truth values, and the bits of integers, which arithmetic reaches."""

from __future__ import annotations

from typing import Any

import torch

from singlecard.lowering.call import Call, tensors_in
from singlecard.lowering.conditions import dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten
Operand = Tensor | Number


def _logical(net: Net, operation: str, self: Operand, other: Operand) -> Tensor:
    return net.binary(operation, net.operand(self, torch.bool), net.operand(other, torch.bool))


#: Elements times bits that an operation on the bits of integers may make.
MOST_BITS = 2**24

_BITS = {torch.int32: 32, torch.int64: 64}


def _bits(call: Call) -> Any:
    """Return how many bits are taken apart, or the shape where that is not known."""
    operands = [call.values["self"], call.values["other"]]
    tensors = list(tensors_in(operands))
    if all(x.dtype == torch.bool for x in tensors) or any(map(_low_bits, operands)):
        return 0
    shapes = [x.shape for x in tensors]
    if not all(isinstance(size, int) for shape in shapes for size in shape):
        return [list(shape) for shape in shapes]
    bits = max(_BITS.get(x.dtype, 0) for x in tensors)
    return torch.broadcast_shapes(*shapes).numel() * bits


def _low_bits(mask: Any) -> int:
    """Return how many of the lowest bits a mask keeps; 0 for another mask, or none."""
    if isinstance(mask, int) and 0 < mask < 2**31 and mask & (mask + 1) == 0:
        return mask.bit_length()
    return 0


# TensorRT-RTX 1.7.1.116 has no operation on the bits of integers ("ElementWiseOperation AND
# requires boolean inputs"): they are taken apart by divisions that round down, all bits at once.
_few_bits = (
    when(
        f"elements times bits of integers <= {MOST_BITS}, or a mask keeps the lowest bits",
        lambda call: isinstance(_bits(call), int) and _bits(call) <= MOST_BITS,
        _bits,
    ),
)


def _apart(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bits of integers below the sign, as a last axis of 0 and 1, and the sign."""
    count = _BITS[x.dtype] - 1
    divisors = net.constant(torch.tensor([1 << place for place in range(count)], dtype=x.dtype))
    above = net.binary("FLOOR_DIV", net.unsqueeze(x, x.ndim), divisors)
    two = net.scalar(2, x.dtype)
    bits = net.sub(above, net.prod(net.binary("FLOOR_DIV", above, two), two))
    return bits, net.binary("LESS", x, net.scalar(0, x.dtype))


def _common_bits(net: Net, a: Tensor, b: Tensor) -> Tensor:
    """Return the bits that two integers have both; products and sums wrap around as bits do."""
    (left, left_sign), (right, right_sign) = _apart(net, a), _apart(net, b)
    both = net.prod(left, right)
    weights = torch.tensor([1 << place for place in range(both.shape[-1])], dtype=a.dtype)
    total = net.reduce("SUM", net.prod(both, net.constant(weights)), [both.ndim - 1], False)
    lowest = net.scalar(torch.iinfo(a.dtype).min, a.dtype)
    negative = net.binary("AND", left_sign, right_sign)
    return net.where(negative, net.sum(total, lowest), total)


def _bitwise_and(net: Net, a: Operand, b: Operand, kind: torch.dtype) -> Tensor:
    for mask, value in ((a, b), (b, a)):
        if count := _low_bits(mask):
            x, power = net.operand(value, kind), net.scalar(1 << count, kind)
            if count < _BITS[kind] - 1:
                return net.sub(x, net.prod(net.binary("FLOOR_DIV", x, power), power))
    return _common_bits(net, net.operand(a, kind), net.operand(b, kind))


@lowers(aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.bitwise_and.Scalar_Tensor)
@accepts(*_few_bits)
def bitwise_and(net: Net, self: Operand, other: Operand) -> Tensor:
    """self & other, of truth values or of the bits of integers."""
    kind = net.result.dtype
    if kind == torch.bool:
        return _logical(net, "AND", self, other)
    return _bitwise_and(net, self, other, kind)


@lowers(aten.logical_and.default)
def logical_and(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self and other."""
    return _logical(net, "AND", self, other)


@lowers(aten.bitwise_or.Tensor, aten.bitwise_or.Scalar, aten.bitwise_or.Scalar_Tensor)
@accepts(*_few_bits)
def bitwise_or(net: Net, self: Operand, other: Operand) -> Tensor:
    """self | other: of integers, the sum less the bits that both have."""
    kind = net.result.dtype
    if kind == torch.bool:
        return _logical(net, "OR", self, other)
    total = net.sum(*net.promote(self, other, dtype=kind))
    return net.sub(total, _bitwise_and(net, self, other, kind))


@lowers(aten.logical_or.default)
def logical_or(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self or other."""
    return _logical(net, "OR", self, other)


@lowers(aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar, aten.bitwise_xor.Scalar_Tensor)
@accepts(*_few_bits)
def bitwise_xor(net: Net, self: Operand, other: Operand) -> Tensor:
    """self ^ other: of integers, the sum less twice the bits that both have."""
    kind = net.result.dtype
    if kind == torch.bool:
        return _logical(net, "XOR", self, other)
    total = net.sum(*net.promote(self, other, dtype=kind))
    return net.sub(total, net.times(_bitwise_and(net, self, other, kind), 2))


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


_of_integers = (dtype("self").integral, dtype("other").integral)


def _within(net: Net, shift: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return shifts with 0 for those out of range, and which are within it."""
    low = net.binary("GREATER", shift, net.scalar(-1, shift.dtype))
    high = net.binary("LESS", shift, net.scalar(most + 1, shift.dtype))
    within = net.binary("AND", low, high)
    return net.where(within, shift, net.scalar(0, shift.dtype)), within


def _power_of_two(net: Net, exponent: Tensor, kind: torch.dtype) -> Tensor:
    """Return two to the power of 0 and more, from a table: exact, and the sign bit at its end."""
    powers = [1 << place for place in range(_BITS[kind] - 1)]
    table = net.constant(torch.tensor([*powers, torch.iinfo(kind).min], dtype=kind))
    return net.gather(table, exponent, 0)


@lowers(
    aten.bitwise_left_shift.Tensor,
    aten.bitwise_left_shift.Tensor_Scalar,
    aten.bitwise_left_shift.Scalar_Tensor,
    aten.__lshift__.Tensor,
    aten.__lshift__.Scalar,
)
@accepts(*_of_integers)
def bitwise_left_shift(net: Net, self: Operand, other: Operand) -> Tensor:
    """self << other, as a product; shifts out of range leave nothing."""
    kind = net.result.dtype
    x, shift = net.promote(self, other, dtype=kind)
    shift, within = _within(net, shift, _BITS[kind] - 1)
    shifted = net.prod(x, _power_of_two(net, shift, kind))
    return net.where(within, shifted, net.scalar(0, kind))


@lowers(
    aten.bitwise_right_shift.Tensor,
    aten.bitwise_right_shift.Tensor_Scalar,
    aten.bitwise_right_shift.Scalar_Tensor,
    aten.__rshift__.Tensor,
    aten.__rshift__.Scalar,
)
@accepts(*_of_integers)
def bitwise_right_shift(net: Net, self: Operand, other: Operand) -> Tensor:
    """self >> other, as divisions rounded down; shifts out of range leave the sign."""
    kind = net.result.dtype
    x, shift = net.promote(self, other, dtype=kind)
    most = net.scalar(_BITS[kind] - 1, kind)
    shift, within = _within(net, shift, _BITS[kind] - 1)
    shift = net.where(within, shift, most)
    # No positive number is as large as the sign bit: the last step is a division by two.
    once = net.binary("MIN", shift, net.scalar(_BITS[kind] - 2, kind))
    x = net.binary("FLOOR_DIV", x, _power_of_two(net, once, kind))
    return net.binary("FLOOR_DIV", x, _power_of_two(net, net.sub(shift, once), kind))
