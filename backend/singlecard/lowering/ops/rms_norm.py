"""RMSNorm, whole as our own op."""

from __future__ import annotations

import torch

from singlecard.capture import ops as own
from singlecard.lowering.conditions import dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor


@lowers(own.rms_norm)
@accepts(dtype("input").floating)
def rms_norm(net: Net, input: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps), statistics in FP32."""
    x = net.cast(input, torch.float32)
    square = net.reduce("AVG", net.prod(x, x), [x.ndim - 1], True)
    root = net.unary("SQRT", net.sum(square, net.scalar(eps, torch.float32, x.ndim)))
    normal = net.cast(net.prod(x, net.unary("RECIP", root)), input.dtype)
    return normal if weight is None else net.prod(normal, net.cast(weight, input.dtype))
