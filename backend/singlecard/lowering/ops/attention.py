"""Scaled-dot-product attention, given whole to TensorRT's attention layer."""

from __future__ import annotations

import math

import torch

from singlecard.capture import ops as own
from singlecard.lowering.call import Call
from singlecard.lowering.conditions import dtype, rank, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

#: Head sizes that the attention layer takes whole, in FP16 and BF16 (tensorrt_rtx 1.7.1.116; every
#: multiple of 4 tried builds between these bounds). Others are decomposed by the builder.
SMALLEST_HEAD, LARGEST_HEAD = 16, 256

#: The most negative number that FP16 holds: an additive mask of -inf would make NaN of 0 * inf.
_LOWEST = {torch.float16: -65504.0, torch.bfloat16: -3.3e38, torch.float32: -3.4e38}


def _ranks(call: Call) -> list[int]:
    return [call.values[name].ndim for name in ("query", "key", "value")]


@lowers(own.attention)
@accepts(
    dtype("query").floating,
    rank("query").between(3, 4),
    when("query, key and value have equal rank", lambda c: len(set(_ranks(c))) == 1, _ranks),
    when(
        "a mask and is_causal are not combined",
        lambda c: c.values["attn_mask"] is None or not c.values["is_causal"],
        lambda c: "both",
    ),
)
def attention(
    net: Net,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """softmax(q @ k.T * scale + mask) @ v."""
    missing = 4 - query.ndim
    for _ in range(missing):
        query, key, value = (net.unsqueeze(x, 0) for x in (query, key, value))
    head = query.shape[-1]
    factor = 1 / math.sqrt(head) if scale is None else scale
    scaled = net.times(query, factor)
    mask = None if attn_mask is None else additive_mask(net, attn_mask, query.dtype)
    whole = query.dtype != torch.float32 and SMALLEST_HEAD <= head <= LARGEST_HEAD
    result = net.attention(
        scaled,
        key,
        value,
        mask,
        "UPPER_LEFT" if is_causal else "NONE",
        decomposable=not whole,
    )
    return net.squeeze(result, range(missing)) if missing else result


def additive_mask(net: Net, mask: Tensor, kind: torch.dtype) -> Tensor:
    """Return a mask that is added to the scores.

    The attention layer takes boolean masks too, at the price of 8 more kernels.
    """
    if mask.dtype == torch.bool:
        keep, drop = net.scalar(0.0, kind, mask.ndim), net.scalar(_LOWEST[kind], kind, mask.ndim)
        mask = net.where(mask, keep, drop)
    return net.pad_rank(net.cast(mask, kind), 4)


@lowers(own.rms_norm)
@accepts(dtype("input").floating)
def rms_norm(net: Net, input: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps), statistics in FP32."""
    x = net.cast(input, torch.float32)
    square = net.reduce("AVG", net.prod(x, x), [x.ndim - 1], True)
    root = net.unary("SQRT", net.sum(square, net.scalar(eps, torch.float32, x.ndim)))
    normal = net.cast(net.prod(x, net.unary("RECIP", root)), input.dtype)
    return normal if weight is None else net.prod(normal, net.cast(weight, input.dtype))
