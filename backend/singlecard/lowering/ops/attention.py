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

#: What stands for minus infinity in a mask: finite, so that a fully masked row gives no NaN.
_LOWEST = {torch.float16: -65504.0, torch.bfloat16: -3.3e38, torch.float32: -3.4e38}


def _ranks(call: Call) -> list[int]:
    return [call.values[name].ndim for name in ("query", "key", "value")]


def _lengths_are_known(call: Call) -> bool:
    return all(isinstance(call.values[name].shape[-2], int) for name in ("query", "key"))


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
    when(
        "the length is known where is_causal is set",
        lambda c: not c.values["is_causal"] or _lengths_are_known(c),
        lambda c: [list(c.values[name].shape) for name in ("query", "key")],
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
    """softmax(q @ k.T * scale + mask) @ v.

    Written out and not as an attention layer: the builder fuses both to the same kernel, but only
    the written-out form also takes masks, causal order and the heads' transposes into it
    (docs/forms.md has the counts).
    """
    heads = query.shape[1]
    key, value = (_repeat_heads(net, x, heads) for x in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = net.matmul(net.times(query, factor), key, transpose_b=True)
    if is_causal:
        attn_mask = _causal_mask(net, query.shape[-2], key.shape[-2])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        lowest = net.scalar(_LOWEST[scores.dtype], scores.dtype, scores.ndim)
        scores = net.where(attn_mask, scores, lowest)
    elif attn_mask is not None:
        scores = net.sum(scores, net.cast(attn_mask, scores.dtype))
    return net.matmul(net.softmax(scores, -1), value)


def _repeat_heads(net: Net, x: Tensor, heads: int) -> Tensor:
    """Repeat each key or value head for the query heads of its group."""
    own_heads = x.shape[1] if x.ndim == 4 else heads
    if own_heads == heads:
        return x
    batch, _, length, width = net.sizes(x)
    grouped = net.expand(net.unsqueeze(x, 2), [batch, own_heads, heads // own_heads, length, width])
    return net.reshape(grouped, [batch, heads, length, width])


def _causal_mask(net: Net, queries: int, keys: int) -> Tensor:
    """Return which keys a query may see: those not after it, counted from the first."""
    return net.constant(torch.ones(queries, keys, dtype=torch.bool).tril())


@lowers(own.rms_norm)
@accepts(dtype("input").floating)
def rms_norm(net: Net, input: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x ** 2) + eps), statistics in FP32."""
    x = net.cast(input, torch.float32)
    square = net.reduce("AVG", net.prod(x, x), [x.ndim - 1], True)
    root = net.unary("SQRT", net.sum(square, net.scalar(eps, torch.float32, x.ndim)))
    normal = net.cast(net.prod(x, net.unary("RECIP", root)), input.dtype)
    return normal if weight is None else net.prod(normal, net.cast(weight, input.dtype))
