"""Normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.native_layer_norm.default)
@accepts(dtype("input").floating, arg("normalized_shape").known)
def native_layer_norm(
    net: Net,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> list[Tensor | None]:
    """Normalization over trailing axes; the saved statistics are not computed."""
    count = len(normalized_shape)
    scale = weight or net.scalar(1.0, input.dtype, input.ndim)
    shift = bias or net.scalar(0.0, input.dtype, input.ndim)
    axes = range(input.ndim - count, input.ndim)
    scale, shift = (
        net.pad_rank(net.cast(value, input.dtype), input.ndim) for value in (scale, shift)
    )
    return [net.normalization(input, scale, shift, axes, eps), None, None]
