"""Quantization as ops of our own: the one form that every quantized graph is brought to.

``fake_quantize`` rounds a value that is computed at run time; ``dequantize`` gives a constant's
codes their meaning. Both are symmetric. A scale has no dimensions, or as many as the value: each
extent is 1, the value's own, or its number of blocks. Both have an implementation in PyTorch, for
parts of a model that stay in eager mode, and for calibration that tries its own choices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from singlecard.network.types import INT4

_library = torch.library.Library("singlecard", "FRAGMENT")
_library.define("fake_quantize(Tensor input, Tensor scale, str kind) -> Tensor")
_library.define("dequantize(Tensor codes, Tensor scale, str kind, ScalarType dtype) -> Tensor")
_library.define(
    "quantized_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask,"
    " bool is_causal, float? scale, bool enable_gqa, bool rows_see, float[] steps, str kind)"
    " -> Tensor"
)


class Kind(NamedTuple):
    """One type of quantized elements.

    Attributes:
        dtype: what TensorRT calls it, as a PyTorch type.
        storage: the PyTorch type that holds its codes.
        largest: the largest magnitude that is used; the range is symmetric.
        bits: of one element.
    """

    dtype: torch.dtype
    storage: torch.dtype
    largest: float
    bits: int


KINDS = {
    "int8": Kind(torch.int8, torch.int8, 127.0, 8),
    "int4": Kind(INT4, torch.int8, 7.0, 4),
    "fp8": Kind(torch.float8_e4m3fn, torch.float8_e4m3fn, 448.0, 8),
}


def codes_of(value: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """Return ``value / scale``, rounded half to even and saturated as TensorRT does.

    Args:
        value: floating point, any shape.
        scale: positive; no dimensions, or as many as ``value``, each extent 1, the value's own or
            a number of blocks that divides it.
        kind: a key of `KINDS`.

    Returns:
        Integers as int8 (INT4: from -8 to 7), or float8_e4m3fn; the shape of ``value``.
    """
    steps = value.float() / expand_blocks(scale.float(), value.shape)
    if kind == "fp8":
        return steps.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    low = -KINDS[kind].largest - 1
    return torch.round(steps).clamp(low, KINDS[kind].largest).to(torch.int8)


def expand_blocks(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Repeat the scales of blocks, so that they broadcast with a value of ``shape``."""
    for axis, count in enumerate(scale.shape if scale.ndim == len(shape) else ()):
        if count not in (1, shape[axis]):
            scale = scale.repeat_interleave(shape[axis] // count, dim=axis)
    return scale


def _dequantize(
    codes: torch.Tensor, scale: torch.Tensor, kind: str, dtype: torch.dtype
) -> torch.Tensor:
    return (codes.float() * expand_blocks(scale.float(), codes.shape)).to(dtype)


def _dequantize_fake(
    codes: torch.Tensor, scale: torch.Tensor, kind: str, dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty_like(codes, dtype=dtype)


def _fake_quantize(input: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    return _dequantize(codes_of(input, scale, kind), scale, kind, input.dtype)


def _fake_quantize_fake(input: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.empty_like(input)


def _quantized_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    rows_see: bool,
    steps: list[float],
    kind: str,
) -> torch.Tensor:
    """Attention whose products have quantized operands.

    ``steps`` are the scales of the queries (times ``scale``), keys, values and probabilities.
    """

    def rounded(x: torch.Tensor, place: int) -> torch.Tensor:
        return _fake_quantize(x, torch.tensor(steps[place], device=x.device), kind)

    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = rounded(query * factor, 0) @ rounded(key, 1).transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        seen = torch.softmax(scores, -1)
    elif attn_mask.dtype == torch.bool:
        seen = torch.softmax(scores.masked_fill(~attn_mask, -math.inf), -1).nan_to_num()
    else:
        seen = torch.softmax(scores + attn_mask, -1)
    return (rounded(seen, 3) @ rounded(value, 2)).contiguous()


def _quantized_attention_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    rows_see: bool,
    steps: list[float],
    kind: str,
) -> torch.Tensor:
    batch = query.shape[:-2]
    if not enable_gqa:
        batch = torch.broadcast_shapes(batch, key.shape[:-2], value.shape[:-2])
    return query.new_empty((*batch, query.shape[-2], value.shape[-1]))


_library.impl("quantized_attention", _quantized_attention, "CompositeExplicitAutograd")
_library.impl("fake_quantize", _fake_quantize, "CompositeExplicitAutograd")
_library.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("singlecard::fake_quantize", _fake_quantize_fake, lib=_library)
torch.library.register_fake("singlecard::dequantize", _dequantize_fake, lib=_library)
torch.library.register_fake(
    "singlecard::quantized_attention", _quantized_attention_fake, lib=_library
)

quantized_attention = torch.ops.singlecard.quantized_attention.default
fake_quantize = torch.ops.singlecard.fake_quantize.default
dequantize = torch.ops.singlecard.dequantize.default
