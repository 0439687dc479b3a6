"""Attention, rotary embedding and the update of a key or value cache."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.reference.quantization import round_quantized
from singlecard.reference.table import Call, evaluates

#: Places of the optional inputs of an attention's input layer.
_MASK, _NORMALIZATION_SCALE, _QUERY_LENGTHS, _KEY_VALUE_LENGTHS = 3, 4, 5, 6


@evaluates("ATTENTION_INPUT")
def attention(call: Call) -> Tensor:
    """The whole attention; the output layer hands the result on.

    ``normalize(q @ k.mT + mask) @ v`` with tensors ``[batch, heads, sequence, size]``. Queries
    are not scaled. Heads of keys and values serve as many query heads as there are more of those.
    """
    if "PACKED_NHD" in (call.text("query_form"), call.text("key_value_form")):
        raise EvaluationError(
            "packed sequences are not evaluated: give the attention padded [B, N, S, H] tensors"
        )
    query, key, value = call[0], call[1], call[2]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.mT
    mask, seen = call.optional(_MASK), _seen(call, scores)
    if mask is not None and mask.dtype == torch.bool:
        seen = mask if seen is None else seen & mask
    elif mask is not None:
        scores = scores + mask
    weights = _normalized(scores, seen, call.text("norm_op"))
    scale = call.optional(_NORMALIZATION_SCALE)
    if scale is not None:
        dtype = call.text("normalization_quantize_to_type")
        weights = round_quantized(weights / scale, dtype).float() * scale
    return weights @ value


def _seen(call: Call, scores: Tensor) -> Tensor | None:
    """Which keys a query may see, by the causal kind and the lengths of the sequences.

    The lower right corner is that of the keys that a sequence really has.
    """
    queries, keys = scores.shape[-2:]
    columns = torch.arange(keys, device=scores.device)
    lengths = call.optional(_KEY_VALUE_LENGTHS)
    count = keys if lengths is None else lengths.reshape(-1, 1, 1, 1)
    seen = None if lengths is None else columns < count
    kind = call.layer.attributes.get("causal_kind")
    if kind is None:  # TensorRT before 11 has only the flag.
        kind = "UPPER_LEFT" if call.integer("causal") else "NONE"
    if kind != "NONE":
        rows = torch.arange(queries, device=scores.device).reshape(-1, 1)
        before = columns <= (rows if kind == "UPPER_LEFT" else rows + count - queries)
        seen = before if seen is None else seen & before
    return seen


def _normalized(scores: Tensor, seen: Tensor | None, operation: str) -> Tensor:
    if operation != "SOFTMAX":
        return scores if seen is None else scores.masked_fill(~seen, 0.0)
    if seen is None:
        return scores.softmax(-1)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    # A query that sees no key at all answers zero.
    return weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)


@evaluates("ATTENTION_OUTPUT", widens=False)
def attention_output(call: Call) -> Tensor:
    return call[0]


@evaluates("ROTARY_EMBEDDING")
def rotary_embedding(call: Call) -> Tensor:
    """Rotate pairs of elements of ``[batch, heads, sequence, size]`` by an angle for each place."""
    x, cosine, sine = call[0], call[1], call[2]
    positions = call.optional(3)
    if positions is not None:
        cosine, sine = cosine[positions.long()], sine[positions.long()]
    size = call.integer("rotary_embedding_dim") or x.shape[-1]
    cosine, sine = cosine[..., : size // 2].unsqueeze(1), sine[..., : size // 2].unsqueeze(1)
    turned, rest = x[..., :size], x[..., size:]
    if call.integer("interleaved"):
        real, imaginary = turned[..., 0::2], turned[..., 1::2]
    else:
        real, imaginary = turned.chunk(2, dim=-1)
    pair = (real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    if call.integer("interleaved"):
        turned = torch.stack(pair, dim=-1).flatten(-2)
    else:
        turned = torch.cat(pair, dim=-1)
    return torch.cat((turned, rest), dim=-1)


@evaluates("KV_CACHE_UPDATE", widens=False)
def kv_cache_update(call: Call) -> Tensor:
    """``out[b, :, w[b] + s] = update[b, :, s]``; the cache that was given stays as it is."""
    if call.layer.attributes.get("update_form") == "PACKED_NHD":
        raise EvaluationError(
            "packed updates are not evaluated: give the layer a padded [B, N, S, H] update"
        )
    cache, update, start = call[0].clone(), call[1], call[2].long()
    batch, heads, length, size = update.shape
    places = start.reshape(-1, 1) + torch.arange(length, device=cache.device)
    index = places.reshape(batch, 1, length, 1).expand(batch, heads, length, size)
    return cache.scatter_(2, index, update)
