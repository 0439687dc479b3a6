"""Ops of our own: what AOTAutograd must not take apart, and what passes recognize.

PyTorch's `scaled_dot_product_attention` becomes a different op on every device once AOTAutograd
has seen it. These stand-ins do not, so that a capture on a CPU and one on a GPU are the same
graph. Each has an implementation in PyTorch, for the parts of a model that stay in eager mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from singlecard.capture.layouts import packed

_library = torch.library.Library("singlecard", "DEF")
_library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal,"
    " float? scale, bool enable_gqa, bool rows_see=False) -> Tensor"
)
_library.define(
    "laid_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal,"
    " float? scale, bool enable_gqa, int[] order) -> Tensor"
)
_library.define("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor")
_library.define("grouped_mm(Tensor input, Tensor weight, Tensor offsets) -> Tensor")
_library.define("rms_norm(Tensor input, Tensor? weight, float eps) -> Tensor")
_library.define("rotary(Tensor input, Tensor cos, Tensor sin, bool interleaved) -> Tensor")
_library.define("update_cache(Tensor cache, Tensor update, Tensor position) -> Tensor")


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    rows_see: bool = False,
) -> torch.Tensor:
    """Attention; ``rows_see`` says that the mask is known to leave each query some key."""
    result = F.scaled_dot_product_attention(
        query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return result.contiguous()  # the layout that the fake implementation promises


def _attention_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    rows_see: bool = False,
) -> torch.Tensor:
    # PyTorch's own say nothing of it, and symbols would stay apart that are one.
    torch._check(key.shape[-2] == value.shape[-2], lambda: "as many keys as values")
    torch._check(query.shape[-1] == key.shape[-1], lambda: "queries as wide as keys")
    batch = query.shape[:-2]
    if not enable_gqa:
        batch = torch.broadcast_shapes(batch, key.shape[:-2], value.shape[:-2])
    return query.new_empty((*batch, query.shape[-2], value.shape[-1]))


def _laid_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    order: Sequence[int],
) -> torch.Tensor:
    """Attention whose axes lie in ``order``, from the outermost in memory to the innermost.

    PyTorch's own choice depends on the device; views, and strides that others see, follow from it.
    """
    result = _attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    return packed(result, tuple(order))


def _laid_attention_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    order: Sequence[int],
) -> torch.Tensor:
    result = _attention_fake(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    return packed(result, tuple(order))


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(input, weight, bias).contiguous()


def _linear_fake(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


def _rms_norm(input: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    x = input if input.dtype == torch.float64 else input.float()
    normal = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)).to(input.dtype)
    return normal if weight is None else weight * normal


def _rms_norm_fake(input: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return torch.empty_like(input)


def _grouped_mm(input: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Rows up to each offset times the matrix of that group; zero behind the last."""
    result = input.new_zeros(input.shape[0], weight.shape[2])
    start = 0
    for group, end in enumerate(offsets.tolist()):
        result[start:end] = input[start:end] @ weight[group]
        start = end
    return result


def _grouped_mm_fake(
    input: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    return input.new_empty((input.shape[0], weight.shape[2]))


def _rotary(
    input: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """Pairs of elements of the last axis, neighbours or from the two halves, turned by angles."""
    if interleaved:
        turned = torch.stack((-input[..., 1::2], input[..., ::2]), -1).flatten(-2)
    else:
        first, second = input.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    return (input * cos + turned * sin).contiguous()


def _rotary_fake(
    input: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    return input.new_empty(torch.broadcast_shapes(input.shape, cos.shape, sin.shape))


def _update_cache(
    cache: torch.Tensor, update: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """A cache [B, N, T, H] with ``update`` [B, N, S, H] written from ``position`` (one int) on."""
    places = torch.arange(update.shape[2], device=cache.device) + position.reshape(1)
    return cache.index_copy(2, places, update)


def _update_cache_fake(
    cache: torch.Tensor, update: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(cache)


_library.impl("attention", _attention, "CompositeExplicitAutograd")
_library.impl("laid_attention", _laid_attention, "CompositeExplicitAutograd")
_library.impl("linear", _linear, "CompositeExplicitAutograd")
_library.impl("rms_norm", _rms_norm, "CompositeExplicitAutograd")
_library.impl("grouped_mm", _grouped_mm, "CompositeExplicitAutograd")
_library.impl("rotary", _rotary, "CompositeExplicitAutograd")
_library.impl("update_cache", _update_cache, "CompositeExplicitAutograd")
torch.library.register_fake("singlecard::grouped_mm", _grouped_mm_fake, lib=_library)
torch.library.register_fake("singlecard::attention", _attention_fake, lib=_library)
torch.library.register_fake("singlecard::laid_attention", _laid_attention_fake, lib=_library)
torch.library.register_fake("singlecard::linear", _linear_fake, lib=_library)
torch.library.register_fake("singlecard::rms_norm", _rms_norm_fake, lib=_library)
torch.library.register_fake("singlecard::rotary", _rotary_fake, lib=_library)
torch.library.register_fake("singlecard::update_cache", _update_cache_fake, lib=_library)

grouped_mm = torch.ops.singlecard.grouped_mm.default
attention = torch.ops.singlecard.attention.default
laid_attention = torch.ops.singlecard.laid_attention.default
linear = torch.ops.singlecard.linear.default
rms_norm = torch.ops.singlecard.rms_norm.default
update_cache = torch.ops.singlecard.update_cache.default
rotary = torch.ops.singlecard.rotary.default

#: PyTorch's own attention ops, one for each kind of kernel: their first result is the attention,
#: the others serve the backward pass. A pass gives them the name `attention`.
FUSED_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
)
