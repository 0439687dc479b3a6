"""Scaled-dot-product attention: `passes/fused_attention.py` gives PyTorch's spellings one name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from singlecard.capture import ops as own
from singlecard.capture import quantized
from singlecard.capture.quantized import KINDS
from singlecard.lowering.conditions import arg, dtype, rank, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.triangle import lower_triangle
from singlecard.network import versions
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

#: What stands for minus infinity in a mask: finite, so that a fully masked row gives no NaN.
_LOWEST = {torch.float16: -65504.0, torch.bfloat16: -3.3e38, torch.float32: -3.4e38}

#: Keys up to which weights may be set to zero inside the attention kernel (tensorrt_rtx 1.7.1.116,
#: SM86 and SM89): with 512 they are, with 2048 the scores go through memory instead.
LONGEST_WITH_ZEROS = 512


@lowers(own.attention)
@accepts(
    dtype("query").floating,
    rank("query").between(2, 8),
    when(
        "a mask and is_causal are not combined",
        lambda call: call.values["attn_mask"] is None or not call.values["is_causal"],
        lambda call: "both",
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
    rows_see: bool = False,
) -> Tensor:
    """softmax(q @ k.T * scale + mask) @ v.

    Written out and not as an attention layer: the builder fuses both to the same kernel, but only
    the written-out form also takes masks, causal order and the heads' transposes into it
    (docs/forms.md has the counts). For a single query the layer is the better form: it reads shared
    heads without repeating them.

    A query that a mask leaves no key gives zero, as in PyTorch.
    """
    sees = rows_see or attn_mask is None or _every_row_sees_something(net, attn_mask)
    if not is_causal and versions.has_attention() and _is_decoding(query, key, value):
        return _decode(net, query, key, value, attn_mask, scale, sees)
    return _written_out(
        net, query, key, value, attn_mask, is_causal, scale, enable_gqa, sees, lambda x, place: x
    )


@lowers(quantized.quantized_attention)
@accepts(
    dtype("query").floating,
    rank("query").between(2, 8),
    arg("kind").one_of("int8", "fp8"),
    when(
        "a mask and is_causal are not combined",
        lambda call: call.values["attn_mask"] is None or not call.values["is_causal"],
        lambda call: "both",
    ),
)
def quantized_attention(
    net: Net,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    rows_see: bool,
    steps: Sequence[float],
    kind: str,
) -> Tensor:
    """Attention whose two products read INT8 or FP8."""

    def rounded(x: Tensor, place: int) -> Tensor:
        step = net.scalar(steps[place], torch.float32)
        return net.dequantize(net.quantize(x, step, KINDS[kind].dtype), step, x.dtype)

    sees = rows_see or attn_mask is None or _every_row_sees_something(net, attn_mask)
    return _written_out(
        net, query, key, value, attn_mask, is_causal, scale, enable_gqa, sees, rounded
    )


#: Puts quantization on an operand of attention: queries 0, keys 1, values 2, probabilities 3.
_Rounding = Callable[[Tensor, int], Tensor]


def _written_out(
    net: Net,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    sees: bool,
    rounded: _Rounding,
) -> Tensor:
    if enable_gqa and query.ndim > 2:
        heads = net.size(query, -3)
        key = _repeat_heads(net, key, "key", heads)
        value = _repeat_heads(net, value, "value", heads)
    query = rounded(_scaled(net, query, scale), 0)
    scores = net.matmul(query, rounded(key, 1), transpose_b=True)
    value = rounded(value, 2)
    if is_causal:
        attn_mask, sees = lower_triangle(net, scores, 0), True
    if attn_mask is None:
        return net.matmul(rounded(net.softmax(scores, -1), 3), value)
    nothing = net.scalar(0.0, scores.dtype, scores.ndim)
    visible: Tensor | None = None
    if attn_mask.dtype == torch.bool:
        lowest = net.scalar(_LOWEST[scores.dtype], scores.dtype, scores.ndim)
        scores, visible = net.where(attn_mask, scores, lowest), attn_mask
    else:
        attn_mask = net.cast(attn_mask, scores.dtype)
        if not sees:
            attn_mask, visible = _without_hidden_rows(net, attn_mask)
        scores = net.sum(scores, attn_mask)
    weights = net.softmax(scores, -1)
    if sees or visible is None:
        return net.matmul(rounded(weights, 3), value)
    if 0 < key.shape[-2] <= LONGEST_WITH_ZEROS:
        return net.matmul(rounded(net.where(visible, weights, nothing), 3), value)
    attended = net.matmul(rounded(weights, 3), value)
    return net.where(_rows_that_see(net, visible), attended, nothing)


def _scaled(net: Net, query: Tensor, scale: float | None) -> Tensor:
    """Multiply queries by the scale, or divide them by the root of their width, which may vary."""
    width = net.size(query, -1)
    if scale is not None:
        return net.times(query, scale)
    if isinstance(width, int):
        return net.times(query, 1 / math.sqrt(width))
    root = net.cast(net.unary("SQRT", net.cast(width, torch.float32)), query.dtype)
    return net.binary("DIV", query, net.pad_rank(root, query.ndim))


def _without_hidden_rows(net: Net, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Clear the rows of an additive mask that hide all keys; return it, and which rows those are.

    What is computed of a cleared row are numbers, not NaN, and is set to zero behind the softmax
    or behind the product. Measured with tensorrt_rtx 1.7.1.116 for SM86 and SM89 in FP16: up to 512
    keys nothing is added to the fused kernel of attention; beyond, one kernel for each attention,
    and one for all that share the mask. Lowest numbers in place of the infinities would not be
    exact: PyTorch tells them apart where a row holds both.
    """
    if not mask.ndim:
        mask = net.pad_rank(mask, 1)
    hidden = net.scalar(-math.inf, mask.dtype, mask.ndim)
    largest = net.reduce("MAX", mask, [mask.ndim - 1], True)
    seen = net.binary("GREATER", largest, hidden)
    return net.where(seen, mask, net.scalar(0.0, mask.dtype, mask.ndim)), seen


def _rows_that_see(net: Net, visible: Tensor) -> Tensor:
    """Return which rows of a mask leave some key."""
    if visible.shape[-1] == 1:
        return visible
    seen = net.reduce("MAX", net.cast(visible, torch.int32), [visible.ndim - 1], True)
    return net.cast(seen, torch.bool)


#: Widths of a head that the attention layer takes (tensorrt_rtx 1.7.1.116).
_WIDTHS = range(16, 257, 8)


def _is_decoding(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether the attention layer takes these, and there is one query for each head."""
    heads, key_heads = query.shape[-3:-2], key.shape[-3:-2]
    return (
        query.ndim == key.ndim == value.ndim == 4
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[2] == 1
        and query.shape[3] in _WIDTHS
        and query.shape[3] == key.shape[3] == value.shape[3]
        and key_heads == value.shape[-3:-2]
        and min(*heads, *key_heads) > 0
        and heads[0] % key_heads[0] == 0
        and query.shape[0] == key.shape[0] == value.shape[0]
    )


def _decode(
    net: Net,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    sees: bool,
) -> Tensor:
    """Attention of one query to a cache, by the layer; its mask must be additive."""
    seen = None
    if mask is not None:
        mask = net.pad_rank(mask, 4)
        if mask.dtype != torch.bool:
            mask = net.cast(mask, query.dtype)
            if not sees:
                mask, seen = _without_hidden_rows(net, mask)
        else:
            seen = None if sees else _rows_that_see(net, mask)
            zero = net.scalar(0.0, query.dtype, 4)
            mask = net.where(mask, zero, net.scalar(_LOWEST[query.dtype], query.dtype, 4))
    attended = net.attention(_scaled(net, query, scale), key, value, mask, "NONE", False)
    if seen is None:
        return attended
    return net.where(seen, attended, net.scalar(0.0, query.dtype, 4))


def _every_row_sees_something(net: Net, mask: Tensor) -> bool:
    known = net.value_of(mask)
    if known is None or known.dtype != torch.bool:
        return False
    return bool(known.any(-1).all())


def _repeat_heads(net: Net, x: Tensor, name: str, heads: Size) -> Tensor:
    """Repeat each key or value head for the query heads of its group."""
    own_heads = x.shape[-3] if x.ndim > 2 else 1
    if own_heads == -1:  # a shape of several unknown sizes: PyTorch may know this one
        told = net.given[name].shape[-3] if name in net.given else -1
        own_heads = told if isinstance(told, int) else -1
    if own_heads == -1:
        return x
    if own_heads in (heads, 1) or not isinstance(heads, int):
        return x
    *batch, _, length, width = net.sizes(x)
    group = [*batch, own_heads, heads // own_heads, length, width]
    grouped = net.expand(net.unsqueeze(x, x.ndim - 2), group)
    return net.reshape(grouped, [*batch, heads, length, width])
