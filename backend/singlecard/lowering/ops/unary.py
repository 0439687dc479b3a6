"""Functions of one value: roots, exponentials, trigonometry, rounding, conversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from singlecard.lowering.conditions import dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


def _unary(target: Any, operation: str) -> Callable[[Net, Tensor], Tensor]:
    @lowers(target)
    @accepts(dtype("self").floating)
    def lower(net: Net, self: Tensor) -> Tensor:
        return net.unary(operation, self)

    lower.__doc__ = f"TensorRT's {operation}."
    return lower


exp = _unary(aten.exp.default, "EXP")
log = _unary(aten.log.default, "LOG")
sqrt = _unary(aten.sqrt.default, "SQRT")
reciprocal = _unary(aten.reciprocal.default, "RECIP")
sin = _unary(aten.sin.default, "SIN")
cos = _unary(aten.cos.default, "COS")
erf = _unary(aten.erf.default, "ERF")
floor = _unary(aten.floor.default, "FLOOR")
ceil = _unary(aten.ceil.default, "CEIL")


@lowers(aten.abs.default)
@accepts(dtype("self").numeric)
def absolute(net: Net, self: Tensor) -> Tensor:
    """|self|."""
    return net.unary("ABS", self)


@lowers(aten.rsqrt.default)
@accepts(dtype("self").floating)
def rsqrt(net: Net, self: Tensor) -> Tensor:
    """1 / sqrt(self)."""
    return net.unary("RECIP", net.unary("SQRT", self))


@lowers(aten._to_copy.default)
def to_copy(net: Net, self: Tensor, *_: Any) -> Tensor:
    """Conversion to another type; places and layouts mean nothing inside an engine."""
    return net.cast(self, net.result.dtype)


@lowers(aten.clone.default, aten.alias.default, aten.detach.default)
def clone(net: Net, self: Tensor, *_: Any) -> Tensor:
    """The value itself."""
    return self
