"""Comparisons: which of two is larger, and what kind of number a value is."""

from __future__ import annotations

import torch

from singlecard.lowering.declaration import lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten
Operand = Tensor | Number


def _compare(net: Net, operation: str, self: Operand, other: Operand) -> Tensor:
    a, b = net.promote(self, other)
    if a.dtype == torch.bool:  # TensorRT orders numbers only
        a, b = net.cast(a, torch.int32), net.cast(b, torch.int32)
    return net.binary(operation, a, b)


@lowers(aten.eq.Tensor, aten.eq.Scalar)
def eq(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self == other."""
    return _compare(net, "EQUAL", self, other)


@lowers(aten.ne.Tensor, aten.ne.Scalar)
def ne(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self != other."""
    return net.logical_not(_compare(net, "EQUAL", self, other))


@lowers(aten.gt.Tensor, aten.gt.Scalar)
def gt(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self > other."""
    return _compare(net, "GREATER", self, other)


@lowers(aten.lt.Tensor, aten.lt.Scalar)
def lt(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self < other."""
    return _compare(net, "LESS", self, other)


def _or_equal(net: Net, operation: str, self: Tensor, other: Operand) -> Tensor:
    # Not "not less": that would be true for NaN, which PyTorch calls false.
    strict = _compare(net, operation, self, other)
    return net.binary("OR", strict, _compare(net, "EQUAL", self, other))


@lowers(aten.ge.Tensor, aten.ge.Scalar)
def ge(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self >= other."""
    return _or_equal(net, "GREATER", self, other)


@lowers(aten.le.Tensor, aten.le.Scalar)
def le(net: Net, self: Tensor, other: Operand) -> Tensor:
    """self <= other."""
    return _or_equal(net, "LESS", self, other)


def _of_float(net: Net, operation: str, x: Tensor) -> Tensor:
    """A question about floats, which is false for integers and truth values."""
    if x.dtype.is_floating_point:
        return net.unary(operation, x)
    return net.expand(net.scalar(False, torch.bool), net.sizes(x))


@lowers(aten.isnan.default)
def isnan(net: Net, self: Tensor) -> Tensor:
    """Whether self is not a number."""
    return _of_float(net, "ISNAN", self)


@lowers(aten.isinf.default)
def isinf(net: Net, self: Tensor) -> Tensor:
    """Whether self is an infinity."""
    return _of_float(net, "ISINF", self)


def sign_bit(net: Net, x: Tensor) -> Tensor:
    """Return whether numbers are negative; -0.0 is, and is told from 0.0 by its reciprocal."""
    if x.dtype == torch.bool:
        return net.expand(net.scalar(False, torch.bool), net.sizes(x))
    zero = net.scalar(0, x.dtype)
    negative = net.binary("LESS", x, zero)
    if not x.dtype.is_floating_point:
        return negative
    below = net.binary("LESS", net.unary("RECIP", x), zero)
    return net.binary("OR", negative, net.binary("AND", net.binary("EQUAL", x, zero), below))


@lowers(aten.signbit.default)
def signbit(net: Net, self: Tensor) -> Tensor:
    """Whether self is negative, -0.0 included."""
    return sign_bit(net, self)
