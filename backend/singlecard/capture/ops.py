"""Ops of our own that keep attention, linear layers and RMSNorm whole through AOTAutograd.

PyTorch's `scaled_dot_product_attention` becomes a different op on every device once AOTAutograd
has seen it. These stand-ins do not, so that a capture on a CPU and one on a GPU are the same
graph. Each has an implementation in PyTorch, for the parts of a model that stay in eager mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_library = torch.library.Library("singlecard", "DEF")
_library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal,"
    " float? scale, bool enable_gqa) -> Tensor"
)
_library.define("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor")
_library.define("grouped_mm(Tensor input, Tensor weight, Tensor offsets) -> Tensor")
_library.define("rms_norm(Tensor input, Tensor? weight, float eps) -> Tensor")


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
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
) -> torch.Tensor:
    batch = query.shape[:-2]
    if not enable_gqa:
        batch = torch.broadcast_shapes(batch, key.shape[:-2], value.shape[:-2])
    return query.new_empty((*batch, query.shape[-2], value.shape[-1]))


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


def _grouped_mm(
    input: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
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


_library.impl("attention", _attention, "CompositeExplicitAutograd")
_library.impl("linear", _linear, "CompositeExplicitAutograd")
_library.impl("rms_norm", _rms_norm, "CompositeExplicitAutograd")
_library.impl("grouped_mm", _grouped_mm, "CompositeExplicitAutograd")
torch.library.register_fake("singlecard::grouped_mm", _grouped_mm_fake, lib=_library)
torch.library.register_fake("singlecard::attention", _attention_fake, lib=_library)
torch.library.register_fake("singlecard::linear", _linear_fake, lib=_library)
torch.library.register_fake("singlecard::rms_norm", _rms_norm_fake, lib=_library)

grouped_mm = torch.ops.singlecard.grouped_mm.default
attention = torch.ops.singlecard.attention.default
linear = torch.ops.singlecard.linear.default
rms_norm = torch.ops.singlecard.rms_norm.default
