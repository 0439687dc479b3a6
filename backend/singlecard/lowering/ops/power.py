"""Powers."""

from __future__ import annotations

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, type_name, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: Integer powers up to this exponent become products, which wrap around as PyTorch's do.
LARGEST_PRODUCT = 64

# TensorRT builds POW of integers, and says nothing of how it rounds or overflows.
_floating_result = when(
    "its result is a floating-point number",
    lambda call: call.result.dtype.is_floating_point,
    lambda call: type_name(call.result.dtype),
)


def _is_product(call: Call) -> bool:
    exponent = call.values["exponent"]
    return call.result.dtype.is_floating_point or (
        isinstance(exponent, int) and 0 <= exponent <= LARGEST_PRODUCT
    )


@lowers(aten.pow.Tensor_Scalar)
@accepts(
    arg("exponent").known,
    when(
        f"the exponent of integers is 0 to {LARGEST_PRODUCT}",
        _is_product,
        lambda call: call.values["exponent"],
    ),
)
def pow_scalar(net: Net, self: Tensor, exponent: Number) -> Tensor:
    """self ** exponent: small whole powers as products, roots as roots."""
    x = net.cast(self, net.result.dtype)
    if not x.dtype.is_floating_point:
        return _product(net, x, int(exponent))
    if exponent in (1, 2, 3):
        return _product(net, x, int(exponent))
    if exponent in (0.5, -0.5):
        root = net.unary("SQRT", x)
        return root if exponent == 0.5 else net.unary("RECIP", root)
    if exponent == -1:
        return net.unary("RECIP", x)
    return net.binary("POW", x, net.scalar(exponent, x.dtype, x.ndim))


def _product(net: Net, x: Tensor, exponent: int) -> Tensor:
    """x multiplied by itself, by repeated squaring."""
    result: Tensor | None = None
    square = x
    while exponent:
        if exponent & 1:
            result = square if result is None else net.prod(result, square)
        exponent >>= 1
        if exponent:
            square = net.prod(square, square)
    if result is None:
        return net.expand(net.scalar(1, x.dtype), net.sizes(x))
    return result


@lowers(aten.pow.Tensor_Tensor, aten.pow.Scalar)
@accepts(_floating_result)
def pow_tensor(net: Net, self: Tensor | Number, exponent: Tensor) -> Tensor:
    """self ** exponent."""
    return net.binary("POW", *net.promote(self, exponent, dtype=net.result.dtype))
